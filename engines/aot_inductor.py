"""AOTInductor: torch's own compiler, ahead of time, for CPU and CUDA.

Building needs a C++ compiler (and the headers of nvcc for CUDA); running needs none.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from engines.export import Graph, Program, Tensors

_CONFIG = {"cpp.threads": 1}  # a worker's other cores draw and encode


def build(program: ExportedProgram, path: Path, *, graph: Graph, batch: range) -> None:
    """Compiles ``program`` into a package at ``path``. Raises the compiler's own errors."""
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=_CONFIG
        )


def load(path: Path) -> Program:
    package = torch._inductor.aoti_load_package(str(path))

    def run(inputs: Tensors) -> Tensors:
        # The code assumes the layout it was compiled for and does not check it.
        made = package(*(x.contiguous() for x in inputs))
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)

    return run
