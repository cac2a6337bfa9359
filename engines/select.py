"""Which engine runs a network here: the first that loads, and whose output is good enough.

The order is what measures fastest where it runs: on a GPU TensorRT, then compiled code; on a CPU
OpenVINO, then compiled code (docs/guide/engines.md); plain torch where all else fails. Of two of a
kind the one of lower precision is tried first, and judged by what it does to the motion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from engines import artifacts, identity
from engines.artifacts import Manifest, Requirements
from engines.base import Engine
from engines.build import load, shapes
from engines.eager import EagerHalves
from engines.example_inputs import Inputs
from engines.export import condition_names
from engines.openvino import OpenVINOEngine, precisions
from engines.programs import ProgramEngine

_PRECISIONS = ("fp8", "bf16", "fp16", "fp32")
# Parameters: to compile and compare a larger network at the start would keep a CPU busy for hours.
_LARGEST = 100_000_000
# What is wrong with an engine's output, or ``None``.
Judge = Callable[[Engine], str | None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Way:
    """An engine that may run the network, and why it should."""

    title: str
    why: str
    precision: str
    make: Callable[[], Engine]


def best(
    net: nn.Module, inputs: Inputs, root: Path, threads: int = 1, *, judge: Judge | None = None
) -> Engine:
    """The first engine that can be made of those that fit ``net``, a `SplitNet`, here.

    ``root``: where artifacts are; ``threads``: of OpenVINO; ``judge`` has the last word on
    engines below single precision. Logs which it is and why, and why others are not used; one that
    fails is a warning.
    """
    for way in _ways(net, inputs, root, threads):
        try:
            engine = way.make()
        except Exception as error:  # backends raise what they like
            _log.warning("engine failed, %s: %s: %s", way.title, type(error).__name__, error)
            continue
        rounded = way.precision != "fp32"
        reason = judge(engine) if judge is not None and rounded else None
        if reason is None:
            _log.info("engine: %s, since %s", way.title, way.why)
            return engine
        _log.info("engine not used, %s: %s", way.title, reason)
    _log.warning("engine: plain torch, since nothing faster works here")
    return EagerHalves(net, condition_names(inputs(1)))


def _ways(net: nn.Module, inputs: Inputs, root: Path, threads: int) -> Iterator[_Way]:
    built = fitting(net, inputs, root)
    first = [way for way in built if way[1].machine["device"] == "cuda"]
    for folder, manifest in first:
        yield _artifact(folder, manifest, inputs)
    parameters = list(net.parameters())
    on_cpu = parameters[0].device.type == "cpu"
    if on_cpu and sum(p.numel() for p in parameters) <= _LARGEST:
        example = inputs(2)
        why = "nothing built for a GPU fits, and it is the fastest on a CPU"
        for precision in precisions():
            make = partial(OpenVINOEngine, net, example, threads, precision=precision)
            yield _Way(f"openvino {precision}", why, precision, make)
    for folder, manifest in built:
        if (folder, manifest) not in first:
            yield _artifact(folder, manifest, inputs)


def fitting(net: nn.Module, inputs: Inputs, root: Path) -> list[tuple[Path, Manifest]]:
    """The artifacts that may run ``net`` here, the best first; says of the others why not."""
    found = list(artifacts.stored(root))
    if not found:
        return []
    wanted = requirements_of(net, inputs)
    fit = []
    for folder, manifest in found:
        reason = (
            manifest if isinstance(manifest, str) else artifacts.incompatibility(manifest, wanted)
        )
        if reason is None and not isinstance(manifest, str):
            fit.append((folder, manifest))
        else:
            _log.info("engine not used, %s: %s", folder.name, reason)
    return sorted(fit, key=_rank)


def requirements_of(net: nn.Module, inputs: Inputs) -> Requirements:
    """What an artifact must be made of to run ``net`` here."""
    weights, code = identity.weights_hash(net), identity.code_hash(net)
    return Requirements(weights, code, shapes(inputs), identity.machines())


def _rank(item: tuple[Path, Manifest]) -> tuple[int, int]:
    manifest = item[1]
    names = identity.BACKENDS
    return names.index(manifest.backend), _PRECISIONS.index(manifest.precision)


def _artifact(folder: Path, manifest: Manifest, inputs: Inputs) -> _Way:
    def make() -> Engine:
        if wrong := artifacts.verify(folder, manifest):
            raise ValueError(wrong)
        device = torch.device(manifest.machine["device"])
        names = condition_names(inputs(1))
        return ProgramEngine(names, load(folder, manifest), manifest.batch[1], device)

    where = manifest.machine.get("gpu", manifest.machine["device"])
    why = f"it was built of these weights for {where}, and is the best of those"
    return _Way(f"{manifest.title} ({folder.name})", why, manifest.precision, make)
