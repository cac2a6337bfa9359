"""Converts a network to OpenVINO's models, and keeps them on disk.

Converting and compiling takes seconds of CPU time, reading it from disk a tenth of that.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import nn

from engines import artifacts
from engines.export import Graph, Rows, Tensors, conditions_of, split_graphs
from engines.openvino import GRAPHS, Models, OpenVINONet
from model.diffusion.cached_context import CachedContext, SplitNet

# Largest absolute error on random inputs: a wrong graph is off by more.
_TOLERANCES = {"fp32": 1e-2, "bf16": 0.1}
_ANY = -1
_log = logging.getLogger(__name__)


def compiled(
    net: nn.Module,
    example: Rows,
    *,
    models: Models | None = None,
    threads: int = 1,
    precision: str = "fp32",
) -> OpenVINONet:
    """``net``, a `SplitNet`, on OpenVINO; ``example``: two or more rows of all its inputs.

    ``models``: of `converted`, in memory or on disk. Raises ``ValueError`` where the compiled
    network does not reproduce ``net``.
    """
    models = converted(net, example) if models is None else models
    names = tuple(conditions_of(example))
    made = OpenVINONet(models, names, threads=threads, precision=precision)
    _check(made, net, example, tolerance=_TOLERANCES[precision])
    return made


def cached(
    net: nn.Module, example: Rows, root: Path, *, threads: int = 1, precision: str = "fp32"
) -> OpenVINONet:
    """An `OpenVINONet` of what an earlier call stored in ``root``, else converted and stored."""
    folder = root / f"openvino-{_key(net, example)}"
    models: Models = {name: folder / f"{name}.xml" for name in GRAPHS}
    if folder.is_dir():
        try:
            return compiled(net, example, models=models, threads=threads, precision=precision)
        except Exception as error:  # OpenVINO raises errors of any type
            _log.warning("converting again, %s is damaged: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    in_memory = converted(net, example)
    try:
        _store(in_memory, folder)
    except OSError as error:  # such as a file system that is read-only
        _log.info("the converted network is not kept: %s", error)
        models = in_memory
    return compiled(net, example, models=models, threads=threads, precision=precision)


def converted(net: nn.Module, example: Rows) -> dict[str, openvino.Model]:
    """The graphs of ``net``, a `SplitNet`, as OpenVINO's models that take any batch."""
    return {graph.name: _converted(graph) for graph in split_graphs(net, example)}


def _check(made: OpenVINONet, net: nn.Module, example: Rows, *, tolerance: float) -> None:
    """Raises ``ValueError`` unless ``made`` gives what ``net`` does.

    On the example and on its first row alone; the first runs also make OpenVINO optimise.
    """
    forward, split = CachedContext(made), cast(SplitNet[Tensors], net)
    one = {name: x[:1] for name, x in example.items()}
    for rows in (example, one, one, example):
        x_t, t, cond = rows["x_t"], rows["t"], conditions_of(rows)
        with torch.inference_mode():
            truth = split.denoise(x_t, t, split.context(cond))
            error = float((forward(x_t, t, cond) - truth).abs().max())
        if not error < tolerance:
            raise ValueError(
                f"OpenVINO is off by {error:.2g} on {len(truth)} rows, expected below {tolerance}"
            )


def _key(net: nn.Module, example: Rows) -> str:
    """Equal for what would be converted to the same models."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    versions = openvino.__version__, torch.__version__, platform.machine()
    shapes = {name: tuple(x.shape[1:]) for name, x in example.items()}
    for part in (artifacts.weights_hash(net), artifacts.code_hash(net), versions, shapes):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _store(models: Mapping[str, openvino.Model], folder: Path) -> None:
    """Writes all models or none; of several processes that do, one succeeds, with equal files."""
    with artifacts.staging(folder.parent) as staging:
        for name, model in models.items():
            openvino.save_model(model, staging / f"{name}.xml", compress_to_fp16=False)
        staging.chmod(0o755)
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _converted(graph: Graph) -> openvino.Model:
    """Avoids ``openvino.convert_model``, which reports its use over the network."""
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(_traced(graph), example_input=graph.inputs)
    model = frontend.convert(frontend.load(decoder))
    shapes = (
        [_ANY if axis == batch else size for axis, size in enumerate(x.shape)]
        for x, batch in zip(graph.inputs, graph.axes, strict=True)
    )
    model.reshape({place: openvino.PartialShape(shape) for place, shape in enumerate(shapes)})
    return model


def _traced(graph: Graph) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns that shapes become constants; `_check` shows that none matters.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph.module.eval(), graph.inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return cast(torch.jit.ScriptModule, traced)
