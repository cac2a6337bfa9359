"""A network on OpenVINO: the engine for CPUs, x86 and Arm alike.

A single window takes a third to a half of torch's time (`bench/network.py`) on processors that
multiply bfloat16 (AVX512-BF16, AMX, Arm's BF16), since half as many bytes of weights are read.
A row's result does not depend on its batch, in either precision.
"""

from __future__ import annotations

import warnings
from typing import cast

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

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
Context = tuple[openvino.Tensor, ...]


class OpenVINONet:
    """Compiles ``net``, a `SplitNet`, on ``example``: two or more rows of all its inputs.

    It is a `SplitNet` itself and takes any batch. One thread by default: sessions run side by side,
    and drawing takes the other cores. ``precision`` is one of `precisions`. Raises ``ValueError``
    where the compiled network does not reproduce ``net``.
    """

    def __init__(
        self, net: nn.Module, example: Rows, *, threads: int = 1, precision: str = "fp32"
    ) -> None:
        graphs = split_graphs(net, example)
        config = {
            **_CONFIG,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[precision],
        }
        self.precision = precision
        self._names = graphs[0].names
        self._context, self._denoise = (_compiled(graph, config) for graph in graphs)
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


def _compiled(graph: Graph, config: dict[str, object]) -> openvino.InferRequest:
    """Avoids ``openvino.convert_model``, which reports its use over the network."""
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(_traced(graph), example_input=graph.inputs)
    model = frontend.convert(frontend.load(decoder))
    shapes = (
        [_ANY if axis == batch else size for axis, size in enumerate(x.shape)]
        for x, batch in zip(graph.inputs, graph.axes, strict=True)
    )
    model.reshape({place: openvino.PartialShape(shape) for place, shape in enumerate(shapes)})
    return openvino.Core().compile_model(model, "CPU", config).create_infer_request()


def _traced(graph: Graph) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns that shapes become constants; `_check` shows that none matters.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph.module.eval(), graph.inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return cast(torch.jit.ScriptModule, traced)
