"""From a network to an artifact on disk: export, build, compare, write, reload, compare."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines import artifacts, fp8, identity
from engines.artifacts import Manifest
from engines.backends import backend
from engines.example_inputs import ExampleModel, Inputs
from engines.export import Program, exported, graphs_of
from engines.programs import run_all

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The worst row's root mean square error, as a share of the truth's spread in it.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.08, "fp8": 0.15}
PRECISIONS = tuple(TOLERANCES)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSpec:
    """What to build; ``batch`` are the sizes that it must take."""

    backend: str
    precision: str
    batch: range

    def __post_init__(self) -> None:
        backend(self.backend)
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision = {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        if not self.batch or self.batch[0] < 1:
            raise ValueError(f"batch = {self.batch}, expected sizes from 1 up")
        if self.precision == "fp8" and self.backend != "tensorrt":
            raise ValueError(f"fp8 is TensorRT's; backend = {self.backend!r}")


def build(example_model: ExampleModel, spec: BuildSpec, root: Path) -> tuple[Path, Manifest]:
    """Builds an artifact in ``root``: its folder, and what it is.

    Raises ``ValueError`` where the backend cannot run, or what it built is off by more than
    `TOLERANCES`: nothing is written then. A backend's own errors come through.
    """
    device = identity.device_for(spec.backend)
    machine = identity.machine(spec.backend, device)
    if machine is None:
        raise ValueError(f"{spec.backend} cannot run here: {_lacking(spec.backend)}")
    net = example_model.net.to(device).float()
    inputs = _on(device, example_model.inputs)
    with artifacts.workshop(root) as folder, exact():
        files = _write(reduced(net, spec.precision, inputs), inputs, spec, folder)
        made = _manifest(example_model.name, net, inputs, spec, machine, files)
        made = replace(made, parity=compared(net, load(folder, made), inputs, spec.batch))
        _refuse_if_off(made)
        place = artifacts.publish(folder, root, made)
        try:  # what was moved and is read anew must still agree
            again = compared(net, load(place, made), inputs, spec.batch)
            _refuse_if_off(replace(made, parity=again))
        except Exception:
            shutil.rmtree(place)
            raise
    return place, made


def _write(net: nn.Module, inputs: Inputs, spec: BuildSpec, folder: Path) -> dict[str, str]:
    """All functions of ``net``, built: the files' names and hashes."""
    tool = backend(spec.backend)
    files = {}
    for graph in graphs_of(net, inputs(2)):
        path = folder / f"{graph.name}{tool.SUFFIX}"
        _log.info("%s: exporting", graph.name)
        with fp8.exporting(spec.precision):
            program = exported(graph, spec.batch)
        _log.info("%s: building for %s", graph.name, spec.backend)
        tool.build(graph, program, spec.batch, path)
        files[path.name] = artifacts.file_hash(path)
    return files


def _manifest(
    name: str,
    net: nn.Module,
    inputs: Inputs,
    spec: BuildSpec,
    machine: identity.Machine,
    files: dict[str, str],
) -> Manifest:
    return Manifest(
        model=name,
        backend=spec.backend,
        precision=spec.precision,
        batch=(spec.batch[0], spec.batch[-1]),
        weights=identity.weights_hash(net),
        code=identity.code_hash(net),
        machine=machine,
        shapes=shapes(inputs),
        files=files,
        tolerance=TOLERANCES[spec.precision],
        parity={},
    )


def load(folder: Path, manifest: Manifest) -> dict[str, Program]:
    """The artifact's functions by name."""
    tool = backend(manifest.backend)
    return {name.removesuffix(tool.SUFFIX): tool.load(folder / name) for name in manifest.files}


def shapes(inputs: Inputs) -> artifacts.Shapes:
    """One row's, without the batch."""
    return {name: tuple(x.shape[1:]) for name, x in inputs(1).items()}


def reduced(net: nn.Module, precision: str, inputs: Inputs) -> nn.Module:
    """A copy of ``net`` in ``precision``; ``net`` itself where that is single."""
    if precision == "fp32":
        return net
    if precision == "fp8":
        return fp8.fp8(copy.deepcopy(net).half(), inputs)
    return copy.deepcopy(net).to(DTYPES[precision])


def compared(
    net: nn.Module, programs: Mapping[str, Program], inputs: Inputs, batch: range
) -> dict[str, float]:
    """Batch size → the worst row's error of ``programs`` against ``net``, see `TOLERANCES`."""
    plain = {graph.name: graph for graph in graphs_of(net, inputs(2))}
    errors = {}
    for size in sorted({batch[0], batch[len(batch) // 2], batch[-1]}):
        rows = inputs(size)
        with torch.inference_mode():
            made, truth = run_all(programs, rows), run_all(plain, rows)
        errors[str(size)] = max(_error(a, b) for a, b in zip(made, truth, strict=True))
    return errors


def _error(made: Tensor, truth: Tensor) -> float:
    """Not a number, or infinite, where ``made`` has such numbers: then no tolerance is met."""
    made, truth = made.float().flatten(1).to(truth.device), truth.float().flatten(1)
    off = (made - truth).square().mean(dim=1).sqrt() / truth.std(dim=1)
    return float(off.max())


def _refuse_if_off(manifest: Manifest) -> None:
    worst = max(manifest.parity.values())
    if not worst <= manifest.tolerance:
        raise ValueError(
            f"the engine is off by {worst:.2g} of the spread, at most {manifest.tolerance:.2g} is "
            f"accepted of {manifest.precision}"
        )


def _on(device: torch.device, inputs: Inputs) -> Inputs:
    return lambda rows: {name: x.to(device) for name, x in inputs(rows).items()}


def exact() -> AbstractContextManager[None]:
    """Single precision that is single precision: cuDNN's convolutions are less by default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _lacking(name: str) -> str:
    if name == "tensorrt" and not torch.cuda.is_available():
        return "there is no GPU"
    return "its package is not installed"
