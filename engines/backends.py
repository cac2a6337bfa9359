"""The backends that build engines ahead of time, by name.

A backend is a module that knows how to `build` a file of an exported function and `load` it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch.export import ExportedProgram

from engines import aot_inductor, tensorrt
from engines.export import Graph, Program


class Backend(Protocol):
    """``SUFFIX`` of its files."""

    SUFFIX: str

    def build(self, graph: Graph, program: ExportedProgram, batch: range, path: Path) -> None:
        """Compiles ``program``, exported from ``graph`` for the sizes of ``batch``, to ``path``."""
        ...

    def load(self, path: Path) -> Program:
        """What `build` wrote, ready to run."""
        ...


BACKENDS: dict[str, Backend] = {"compiled": aot_inductor, "tensorrt": tensorrt}


def backend(name: str) -> Backend:
    """Raises ``ValueError`` for an unknown name."""
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
