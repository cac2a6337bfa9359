"""A network on OpenVINO: the engine for CPUs, x86 and Arm alike.

A single window takes a third to a half of torch's time (`bench/network.py`) on processors that
multiply bfloat16 (AVX512-BF16, AMX, Arm's BF16), since half as many bytes of weights are read.
A row's result does not depend on its batch, in either precision.

Converting and compiling a network takes seconds of CPU time, reading it from disk a tenth of that.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from engines import artifacts
from engines.export import Graph, Rows, Tensors, conditions_of, split_graphs
from model.diffusion.cached_context import CachedContext, SplitNet
from model.diffusion.denoiser import Conditions

# Largest absolute error on random inputs: a wrong graph is off by more.
_TOLERANCES = {"fp32": 1e-2, "bf16": 0.1}
_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names
_ANY = -1
_CONFIG = {
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}
_GRAPHS = ("context", "denoise")
Context = tuple[openvino.Tensor, ...]
Models = Mapping[str, openvino.Model | Path]
_log = logging.getLogger(__name__)


class OpenVINONet:
    """Compiles ``net``, a `SplitNet`, on ``example``: two or more rows of all its inputs.

    It is a `SplitNet` itself and takes any batch. One thread by default: sessions run side by side,
    and drawing takes the other cores. ``precision`` is one of `precisions`. ``models``: of
    `converted`, in memory or on disk. Raises ``ValueError`` where the compiled network does not
    reproduce ``net``.
    """

    def __init__(
        self,
        net: nn.Module,
        example: Rows,
        *,
        models: Models | None = None,
        threads: int = 1,
        precision: str = "fp32",
    ) -> None:
        models = converted(net, example) if models is None else models
        config = {
            **_CONFIG,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[precision],
        }
        self.precision = precision
        self._names = tuple(conditions_of(example))
        self._context, self._denoise = (_compiled(models[name], config) for name in _GRAPHS)
        self._inputs: list[openvino.Tensor] = []
        self._bound: Context | None = None
        _check(self, net, example, tolerance=_TOLERANCES[precision])

    def context(self, cond: Conditions) -> Context:
        """The request's own output tensors: the next call overwrites them."""
        # Inputs are shared, not copied: they must live as long as the request may read them.
        self._inputs = [_shared(cond[name]) for name in self._names]
        for place, tensor in enumerate(self._inputs):
            self._context.set_input_tensor(place, tensor)
        self._context.infer()
        outputs = range(len(self._context.model_outputs))
        return tuple(self._context.get_output_tensor(place) for place in outputs)

    def denoise(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        inputs = _shared(x_t), _shared(t)
        for place, tensor in enumerate(inputs):
            self._denoise.set_input_tensor(place, tensor)
        if context is not self._bound:
            for place, tensor in enumerate(context, len(inputs)):
                self._denoise.set_input_tensor(place, tensor)
            self._bound = context
        self._denoise.infer()
        return torch.from_numpy(np.array(self._denoise.get_output_tensor(0).data))


def cached(
    net: nn.Module, example: Rows, root: Path, *, threads: int = 1, precision: str = "fp32"
) -> OpenVINONet:
    """An `OpenVINONet` of what an earlier call stored in ``root``, else converted and stored."""
    folder = root / f"openvino-{_key(net, example)}"
    stored = {name: folder / f"{name}.xml" for name in _GRAPHS}
    if folder.is_dir():
        try:
            return OpenVINONet(net, example, models=stored, threads=threads, precision=precision)
        except Exception as error:  # OpenVINO raises errors of any type
            _log.warning("converting again, %s is damaged: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    models = converted(net, example)
    made = OpenVINONet(net, example, models=models, threads=threads, precision=precision)
    try:
        _store(models, folder)
    except OSError as error:  # such as a file system that is read-only
        _log.info("the converted network is not kept: %s", error)
    return made


def converted(net: nn.Module, example: Rows) -> Models:
    """The graphs of ``net``, a `SplitNet`, as OpenVINO's models that take any batch."""
    return {graph.name: _converted(graph) for graph in split_graphs(net, example)}


def precisions() -> tuple[str, ...]:
    """Those that this processor runs at full speed, the fastest first."""
    native = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if "BF16" in native else ("fp32",)


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


def _shared(tensor: Tensor) -> openvino.Tensor:
    return openvino.Tensor(np.ascontiguousarray(tensor.numpy()), shared_memory=True)


def _key(net: nn.Module, example: Rows) -> str:
    """Equal for what would be converted to the same models."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    versions = openvino.__version__, torch.__version__, platform.machine()
    shapes = {name: tuple(x.shape[1:]) for name, x in example.items()}
    for part in (artifacts.weights_hash(net), artifacts.code_hash(net), versions, shapes):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _store(models: Models, folder: Path) -> None:
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


def _compiled(model: openvino.Model | Path, config: Mapping[str, object]) -> openvino.InferRequest:
    """Of a file, what OpenVINO compiles is kept beside it."""
    if isinstance(model, Path) and os.access(model.parent, os.W_OK):
        config = {**config, "CACHE_DIR": str(model.parent)}
    return openvino.Core().compile_model(model, "CPU", dict(config)).create_infer_request()


def _traced(graph: Graph) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns that shapes become constants; `_check` shows that none matters.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph.module.eval(), graph.inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return cast(torch.jit.ScriptModule, traced)
