"""The backends that build engines ahead of time, and a network that runs on what they built."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram

from engines import aot_inductor, tensorrt
from engines.export import Graph, Program, Rows, Tensors, conditions_of
from engines.stored import NVIDIA_DRIVER
from model.diffusion.denoiser import Conditions

Machine = Mapping[str, str]
NO_GPU = "there is no GPU"
_DRIVER = NVIDIA_DRIVER


class Compiler(Protocol):
    """A module that compiles an exported function to a file, and loads such a file."""

    def build(self, program: ExportedProgram, path: Path, *, graph: Graph, batch: range) -> None:
        """Compiles ``program``, exported from ``graph`` for the sizes of ``batch``, to ``path``."""
        ...

    def load(self, path: Path) -> Program:
        """What `build` wrote, ready to run."""
        ...


@dataclass(frozen=True)
class Backend:
    """``packages``: any one of them suffices; the versions of all that are installed count.

    ``devices``: types of torch's. ``precisions``: the fastest first. ``suffix``: of its files.
    ``host_code``: what it builds depends on the processor, even where a GPU does the work.
    ``builder``: a module that only building needs.
    """

    name: str
    compiler: Compiler
    packages: tuple[str, ...]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    suffix: str
    host_code: bool = False
    builder: str = "torch"

    def device(self) -> torch.device:
        """Where its engines run here: on a GPU if there is one."""
        gpu = torch.cuda.is_available() or "cpu" not in self.devices
        return torch.device("cuda" if gpu else "cpu")

    def unavailable(self) -> str | None:
        """Why its engines cannot run here; None: they can."""
        if self.device().type == "cuda" and not torch.cuda.is_available():
            return gpu_problem()
        if not self._versions():
            return f"none of its packages is installed: {', '.join(self.packages)}"
        return None

    def unbuildable(self) -> str | None:
        """Why its engines cannot be built here; None: they can."""
        if self.device().type == "cuda" and (problem := gpu_problem()):
            return problem
        if find_spec(self.builder) is None:
            return (
                f"{self.builder} is not installed; `fada doctor` names the command that installs it"
            )
        return self.unavailable()

    def machine(self) -> Machine:
        """Everything here that its engines depend on: device, abilities, versions."""
        device = self.device()
        about = {"system": f"{platform.system()} {platform.machine()}", "device": device.type}
        if device.type == "cuda":
            about |= {
                "gpu": torch.cuda.get_device_name(device),
                "capability": ".".join(str(n) for n in torch.cuda.get_device_capability(device)),
                "cuda": str(torch.version.cuda),
            }
        if self.host_code:
            abilities = torch.cpu.get_capabilities().items()  # instructions, not cores or caches
            about["processor"] = " ".join(sorted(name for name, able in abilities if able is True))
        return about | self._versions() | {"torch": torch.__version__}

    def _versions(self) -> dict[str, str]:
        found = {package: _version(package) for package in self.packages}
        return {package: version for package, version in found.items() if version is not None}


# The fastest first.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="tensorrt",
            compiler=tensorrt,
            packages=("tensorrt", "tensorrt_rtx"),
            devices=("cuda",),
            precisions=("fp8", "bf16", "fp16", "fp32"),
            suffix=".plan",
            builder="torch_tensorrt",
        ),
        Backend(
            name="compiled",
            compiler=aot_inductor,
            packages=("torch",),
            devices=("cpu", "cuda"),
            precisions=("bf16", "fp16", "fp32"),
            suffix=".pt2",
            host_code=True,
        ),
    )
}


def gpu_problem() -> str | None:
    """Why torch cannot use a GPU here, such as a driver that is too old; None: it can."""
    if torch.cuda.is_available():
        return None
    if not _DRIVER.exists():
        return NO_GPU
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # AssertionError where torch is built without CUDA
        return f"torch cannot use the GPU: {str(error).splitlines()[0]}"
    return "torch finds no GPU that it can use"


def driver_version() -> str:
    """The GPU driver's own description of its version; empty without one."""
    return _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else ""


def backend_named(name: str) -> Backend:
    """Raises ``ValueError`` for an unknown name."""
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def machines() -> dict[str, Machine]:
    """`Backend.machine` of each backend that can run here."""
    able = (backend for backend in BACKENDS.values() if backend.unavailable() is None)
    return {backend.name: backend.machine() for backend in able}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class ProgramNet:
    """A `SplitNet` of compiled functions, ``context`` and ``denoise``.

    Takes any batch: one of more than ``most`` rows runs in portions, and with ``sizes`` a portion
    is padded to the next of them. Inputs may be on any device; the prediction is on that of
    ``x_t``.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        programs: Mapping[str, Program],
        *,
        most: int,
        device: torch.device,
        sizes: Sequence[int] = (),
    ) -> None:
        """``names``: of the conditions, in the order of the inputs of ``context``; ``sizes``: of
        batches, ascending up to ``most``."""
        self.most, self._names, self._device = most, names, device
        self._sizes = sizes
        self._context, self._denoise = programs["context"], programs["denoise"]

    def context(self, cond: Conditions) -> list[Tensors]:
        """One tuple of tensors a portion."""
        made = (self._context(part) for part in self._portions([cond[n] for n in self._names]))
        # Lay them out once rather than at every step; a CUDA graph overwrites its outputs.
        return [tuple(x.clone(memory_format=torch.contiguous_format) for x in p) for p in made]

    def denoise(self, x_t: Tensor, t: Tensor, context: list[Tensors]) -> Tensor:
        made = [
            self._denoise((*part, *own))[0].to(x_t, copy=True)
            for part, own in zip(self._portions((x_t, t)), context, strict=True)
        ]
        return torch.cat(made)[: len(x_t)]  # only the last portion is padded

    def _portions(self, tensors: Sequence[Tensor]) -> Iterator[Tensors]:
        for start in range(0, len(tensors[0]), self.most):
            portion = [x[start : start + self.most] for x in tensors]
            rows = len(portion[0])
            padding = next((size for size in self._sizes if size >= rows), rows) - rows
            yield tuple(
                torch.cat([x, x[-1:].expand(padding, *x.shape[1:])]).to(self._device)
                if padding
                else x.to(self._device).contiguous()
                for x in portion
            )


def run_programs(programs: Mapping[str, Program], rows: Rows) -> Tensors:
    """The outputs of a network's ``programs`` for ``rows`` of all its inputs."""
    if "denoise" not in programs:
        (program,) = programs.values()
        return program(tuple(rows[name] for name in sorted(rows)))
    context = programs["context"](tuple(conditions_of(rows).values()))
    return programs["denoise"]((rows["x_t"], rows["t"], *context))
