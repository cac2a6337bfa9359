"""AOTInductor: torch's own compiler, ahead of time, for CPU and CUDA.

Building needs a C++ compiler (and nvcc's headers for CUDA); running needs none.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from engines.export import Graph, Program, Tensors

SUFFIX = ".pt2"
# Of a worker's cores the others draw and encode: see `engines.openvino`.
_CONFIG = {"cpp.threads": 1}


def build(graph: Graph, program: ExportedProgram, batch: range, path: Path) -> None:
    """Compiles ``program`` into a package at ``path``. Raises the compiler's own errors."""
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=_CONFIG
        )


def load(path: Path) -> Program:
    package = torch._inductor.aoti_load_package(str(path))

    def run(inputs: Tensors) -> Tensors:
        # The code was made for this layout, and does not look which it gets.
        made = package(*(x.contiguous() for x in inputs))
        return (made,) if isinstance(made, torch.Tensor) else tuple(made)

    return run
