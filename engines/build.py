"""From a network to an artifact on disk: export, compile, compare, publish, reload, compare."""

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

from engines import artifacts, fp8
from engines.artifacts import Manifest
from engines.base import backend_named, run_programs
from engines.example_inputs import ExampleModel, Inputs
from engines.export import Program, export, graphs_of

# The worst row's root mean square error, as a share of the standard deviation of its true output.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.08, "fp8": 0.15}
PRECISIONS = tuple(TOLERANCES)
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSpec:
    """What to build; ``batch``: the sizes that it must take. Raises ``ValueError`` if it cannot."""

    backend: str
    precision: str
    batch: range

    def __post_init__(self) -> None:
        able = [p for p in PRECISIONS if p in backend_named(self.backend).precisions]
        if self.precision not in able:
            raise ValueError(
                f"precision = {self.precision!r}, expected one of {', '.join(able)} for the "
                f"backend {self.backend}"
            )
        if not self.batch or self.batch[0] < 1:
            raise ValueError(f"batch = {self.batch}, expected sizes from 1 up")


def build(model: ExampleModel, spec: BuildSpec, root: Path) -> tuple[Path, Manifest]:
    """Builds an artifact in ``root``: its folder and its manifest.

    Raises ``ValueError`` where the backend cannot run, or the error exceeds `TOLERANCES`: nothing
    is written then. Errors of the backend pass through.
    """
    backend = backend_named(spec.backend)
    if reason := backend.unavailable():
        raise ValueError(f"{spec.backend} cannot run here: {reason}")
    device = backend.device()
    net = model.net.to(device).float()
    inputs = _on(device, model.inputs)
    unbuilt = requested(ExampleModel(model.name, net, inputs), spec)
    with artifacts.staging(root) as folder, without_tf32():
        reduced = in_precision(net, spec.precision, inputs)
        built = replace(unbuilt, files=_compile(reduced, inputs, spec, folder=folder))
        manifest = _measured(built, net, inputs, folder=folder)
        place = artifacts.publish(folder, root, manifest)
        try:  # what was moved and is read again must still agree
            _measured(manifest, net, inputs, folder=place)
        except Exception:
            shutil.rmtree(place)
            raise
    return place, manifest


def requested(model: ExampleModel, spec: BuildSpec) -> Manifest:
    """The manifest of ``spec`` for ``model`` here, without files: what identifies the artifact."""
    return Manifest(
        model=model.name,
        backend=spec.backend,
        precision=spec.precision,
        batch=(spec.batch[0], spec.batch[-1]),
        weights=artifacts.weights_hash(model.net),
        code=artifacts.code_hash(model.net),
        machine=backend_named(spec.backend).machine(),
        shapes=row_shapes(model.inputs),
        files={},
        tolerance=TOLERANCES[spec.precision],
        parity={},
    )


def _compile(net: nn.Module, inputs: Inputs, spec: BuildSpec, *, folder: Path) -> dict[str, str]:
    """Builds all functions of ``net``: the names and hashes of their files."""
    backend = backend_named(spec.backend)
    files = {}
    for graph in graphs_of(net, inputs(2)):
        path = folder / f"{graph.name}{backend.suffix}"
        _log.info("exporting %s", graph.name)
        with fp8.exportable(spec.precision):
            program = export(graph, spec.batch)
        _log.info("building %s with %s", graph.name, spec.backend)
        backend.compiler.build(program, path, graph=graph, batch=spec.batch)
        files[path.name] = artifacts.file_hash(path)
    return files


def _measured(manifest: Manifest, net: nn.Module, inputs: Inputs, *, folder: Path) -> Manifest:
    """``manifest`` with its parity. Raises ``ValueError`` where that exceeds its tolerance."""
    first, last = manifest.batch
    parity = parity_of(load(folder, manifest), net, inputs, batch=range(first, last + 1))
    worst = max(parity.values())
    if not worst <= manifest.tolerance:  # or NaN
        raise ValueError(
            f"the engine's error is {worst:.2g} of the output's spread, expected at most "
            f"{manifest.tolerance:.2g} in {manifest.precision}"
        )
    return replace(manifest, parity=parity)


def load(folder: Path, manifest: Manifest) -> dict[str, Program]:
    """The functions of an artifact by name."""
    backend = backend_named(manifest.backend)
    return {
        name.removesuffix(backend.suffix): backend.compiler.load(folder / name)
        for name in manifest.files
    }


def row_shapes(inputs: Inputs) -> artifacts.Shapes:
    """The shape of one row of each input, without the batch."""
    return {name: tuple(x.shape[1:]) for name, x in inputs(1).items()}


def in_precision(net: nn.Module, precision: str, inputs: Inputs) -> nn.Module:
    """A copy of ``net`` in ``precision``; ``net`` itself in ``fp32``."""
    if precision == "fp32":
        return net
    if precision == "fp8":
        return fp8.quantize(copy.deepcopy(net).half(), inputs)
    return copy.deepcopy(net).to(_DTYPES[precision])


def parity_of(
    programs: Mapping[str, Program], net: nn.Module, inputs: Inputs, *, batch: range
) -> dict[str, float]:
    """Batch size → the worst row's error of ``programs`` against ``net``, see `TOLERANCES`.

    At the smallest, the middle and the largest size of ``batch``.
    """
    plain = {graph.name: graph for graph in graphs_of(net, inputs(2))}
    errors = {}
    for size in sorted({batch[0], batch[len(batch) // 2], batch[-1]}):
        rows = inputs(size)
        with torch.inference_mode():
            made, truth = run_programs(programs, rows), run_programs(plain, rows)
        errors[str(size)] = max(_error(a, b) for a, b in zip(made, truth, strict=True))
    return errors


def _error(made: Tensor, truth: Tensor) -> float:
    """NaN or infinite where ``made`` is; no tolerance accepts that."""
    made, truth = made.float().flatten(1).to(truth.device), truth.float().flatten(1)
    errors = (made - truth).square().mean(dim=1).sqrt() / truth.std(dim=1)
    return float(errors.max())


def _on(device: torch.device, inputs: Inputs) -> Inputs:
    return lambda rows: {name: x.to(device) for name, x in inputs(rows).items()}


def without_tf32() -> AbstractContextManager[None]:
    """Within it convolutions are in full single precision; cuDNN uses TF32 by default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
