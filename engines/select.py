"""Which engine runs a network here: the first that loads and is accurate enough.

They are tried in the order of measured speed: TensorRT, then compiled code, on a GPU; OpenVINO,
then compiled code, on a CPU; plain torch where all of them fail (docs/guide/engines.md). Of engines
of one kind the lowest precision comes first, and is accepted or not by the motion that it makes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from engines import artifacts
from engines.artifacts import Manifest, Requirements
from engines.base import BACKENDS, ProgramNet, machines
from engines.build import load, row_shapes
from engines.cuda_graphs import CapturedProgram, capture_sizes
from engines.example_inputs import Inputs, motion_inputs, video_inputs
from engines.export import Tensors, conditions_of
from engines.motion_error import MAX_MOTION_ERROR, motion_error
from engines.openvino import precisions
from engines.openvino_convert import cached
from model.audio.frontend import AudioWindowSpec
from model.diffusion.cached_context import CachedContext, SplitNet
from model.diffusion.denoiser import Forward
from model.motion.checkpoint import MotionWeights

# To compile and compare a larger network at the start would keep a CPU busy for hours.
_MAX_OPENVINO_PARAMETERS = 100_000_000
_MAX_VIDEO_THREADS = 4  # more were not tried
# On a GPU. A pass of a video student is bound by arithmetic, so larger batches gain little.
_MOTION_BATCH, _VIDEO_BATCH = range(1, 65), range(1, 5)
# CUDA graphs pay where launching takes as long as computing: in small networks. Each graph of a
# large one would hold gigabytes.
_MAX_CAPTURED_BYTES = 200_000_000
# An engine → why it is not accurate enough; None: it is.
Check = Callable[[Forward], str | None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Candidate:
    """An engine that may run the network, and why it is preferred to the next."""

    title: str
    reason: str
    precision: str
    make: Callable[[], SplitNet[Any]]


@dataclass(frozen=True)
class StudentNet:
    """A student's network, with what its engines are made by.

    ``batch``: the sizes that an engine for a GPU takes; ``threads`` and ``check`` as for `best`.
    """

    net: nn.Module
    inputs: Inputs
    batch: range
    threads: int = 1
    check: Check | None = None


def motion_engine(weights: MotionWeights) -> Forward:
    """The fastest engine here whose motion is the network's, see `motion_error`."""
    return student_engine(motion_net(weights))


def motion_net(weights: MotionWeights) -> StudentNet:
    def inputs(rows: int) -> dict[str, Tensor]:
        return motion_inputs(rows, weights.net.config.guided)

    def check(forward: Forward) -> str | None:
        error = motion_error(weights, forward)
        if error < MAX_MOTION_ERROR:
            return None
        return f"motion is off by {error:.1%} of its spread, expected below {MAX_MOTION_ERROR:.0%}"

    return StudentNet(weights.net, inputs, _MOTION_BATCH, check=check)


def video_engine(net: nn.Module, window_spec: AudioWindowSpec, latent: tuple[int, ...]) -> Forward:
    """The fastest engine here of a video student. ``latent``: the shape of a frame's."""
    return student_engine(video_net(net, window_spec, latent))


def video_net(net: nn.Module, window_spec: AudioWindowSpec, latent: tuple[int, ...]) -> StudentNet:
    """On several threads: nearly all of a video's time is the network's, so other cores are
    idle."""
    inputs = video_inputs(net, window_spec, latent)
    threads = min(os.cpu_count() or 1, _MAX_VIDEO_THREADS)
    return StudentNet(net, inputs, _VIDEO_BATCH, threads=threads)


def student_engine(student: StudentNet) -> CachedContext[Any]:
    """`best` of what is stored in the default folder."""
    root = artifacts.default_folder()
    return best(student.net, student.inputs, root, threads=student.threads, check=student.check)


def best(
    net: nn.Module, inputs: Inputs, root: Path, *, threads: int = 1, check: Check | None = None
) -> CachedContext[Any]:
    """The first engine for ``net``, a `SplitNet`, that can be made here and passes ``check``.

    ``root``: where artifacts are; ``threads``: of OpenVINO; ``check``: of engines below single
    precision. Logs which engine it is and why the others are not used; one that fails is a warning.
    """
    for candidate in _candidates(net, inputs, root, threads=threads):
        if (engine := _checked(candidate, check)) is not None:
            return engine
    _log.warning("using plain torch: no engine works here")
    return CachedContext(cast(SplitNet[Tensors], net.eval()))


def stored_engine(student: StudentNet, folder: Path) -> CachedContext[Any] | None:
    """The artifact in ``folder`` as `best` would take it; None where it is refused, as logged."""
    manifest = artifacts.read(folder / artifacts.MANIFEST)
    return _checked(_artifact(folder, manifest, student.inputs), student.check)


def _checked(candidate: _Candidate, check: Check | None) -> CachedContext[Any] | None:
    try:
        engine = CachedContext(candidate.make())
    except Exception as error:  # backends raise errors of any type
        _log.warning("engine %s failed: %s: %s", candidate.title, type(error).__name__, error)
        return None
    reduced = candidate.precision != "fp32"
    problem = check(engine) if check is not None and reduced else None
    if problem is None:
        _log.info("using engine %s: %s", candidate.title, candidate.reason)
        return engine
    _log.info("not using engine %s: %s", candidate.title, problem)
    return None


def _candidates(
    net: nn.Module, inputs: Inputs, root: Path, *, threads: int
) -> Iterator[_Candidate]:
    built = fitting(net, inputs, root)
    on_gpu = [item for item in built if item[1].machine["device"] == "cuda"]
    for folder, manifest in on_gpu:
        yield _artifact(folder, manifest, inputs)
    parameters = list(net.parameters())
    on_cpu = parameters[0].device.type == "cpu"
    if on_cpu and sum(p.numel() for p in parameters) <= _MAX_OPENVINO_PARAMETERS:
        example = inputs(2)
        for precision in precisions():
            yield _Candidate(
                title=f"openvino {precision}",
                reason="it is the fastest on a CPU, and no engine for a GPU fits",
                precision=precision,
                make=partial(cached, net, example, root, threads=threads, precision=precision),
            )
    for folder, manifest in built:
        if (folder, manifest) not in on_gpu:
            yield _artifact(folder, manifest, inputs)


def fitting(net: nn.Module, inputs: Inputs, root: Path) -> list[tuple[Path, Manifest]]:
    """The artifacts that can run ``net`` here, the best first; logs why the others cannot."""
    found = list(artifacts.stored(root))
    if not found:
        return []
    required = Requirements(
        weights=artifacts.weights_hash(net),
        code=artifacts.code_hash(net),
        shapes=row_shapes(inputs),
        machines=machines(),
    )
    fit = []
    for folder, manifest in found:
        if isinstance(manifest, str):
            problem: str | None = manifest
        elif (problem := artifacts.incompatibility(manifest, required)) is None:
            fit.append((folder, manifest))
        if problem is not None:
            _log.info("not using engine %s: %s", folder.name, problem)
    return sorted(fit, key=_rank)


def _rank(item: tuple[Path, Manifest]) -> tuple[int, int]:
    manifest = item[1]
    precisions = BACKENDS[manifest.backend].precisions
    return tuple(BACKENDS).index(manifest.backend), precisions.index(manifest.precision)


def _artifact(folder: Path, manifest: Manifest, inputs: Inputs) -> _Candidate:
    def make() -> ProgramNet:
        if problem := artifacts.verify(folder, manifest):
            raise ValueError(problem)
        device = torch.device(manifest.machine["device"])
        names, most = tuple(conditions_of(inputs(1))), manifest.batch[1]
        programs = load(folder, manifest)
        plain = ProgramNet(names, programs, most=most, device=device)
        size = sum((folder / name).stat().st_size for name in manifest.files)
        if device.type == "cpu" or size > _MAX_CAPTURED_BYTES:
            return plain
        captured = {name: CapturedProgram(program) for name, program in programs.items()}
        sizes = capture_sizes(most)
        engine = ProgramNet(names, captured, most=most, device=device, sizes=sizes)
        try:
            for rows in map(inputs, sizes):
                engine.denoise(rows["x_t"], rows["t"], engine.context(conditions_of(rows)))
        except RuntimeError as error:  # CUDA's
            _log.warning("engine %s runs without CUDA graphs: %s", folder.name, error)
            return plain
        return engine

    where = manifest.machine.get("gpu", manifest.machine["device"])
    return _Candidate(
        title=f"{manifest.title} ({folder.name})",
        reason=f"it was built from these weights for {where}",
        precision=manifest.precision,
        make=make,
    )
