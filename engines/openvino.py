"""The network on OpenVINO: the engine for CPUs, x86 and Arm alike.

A window alone takes a half to a third of torch's time (`bench/network.py`) where the processor
multiplies bfloat16 (AVX512-BF16, AMX, Arm's BF16): the weights are half as many bytes to fetch.
What a batch gives is what each row gives alone, in either precision.
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

from engines.export import Example, Graph, halves
from engines.split import SplitEngine

# Largest absolute error on random inputs: a wrong graph is off by more.
_TOLERANCES = {"fp32": 1e-2, "bf16": 0.1}
_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names
_ANY = -1
_CONFIG = {
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}


class OpenVINOEngine(SplitEngine):
    """Compiles ``net``, a `SplitNet`, on ``example``: two or more rows of all its inputs.

    One thread by default: sessions run side by side, and drawing takes the other cores.
    ``precision`` is one of `precisions`. Raises ``ValueError`` when the compiled network does not
    reproduce ``net``.
    """

    def __init__(
        self, net: nn.Module, example: Example, threads: int = 1, *, precision: str = "fp32"
    ) -> None:
        context, denoise = halves(net, example)
        super().__init__(context.names)
        self.precision = precision
        config = {
            **_CONFIG,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[precision],
        }
        self._prepare, self._denoise = (_compiled(half, config) for half in (context, denoise))
        self._held: list[openvino.Tensor] = []
        self.check(net, example, _TOLERANCES[precision])

    def prepare(self, conditions: tuple[Tensor, ...]) -> None:
        # The tensors are shared, not copied: they must live as long as the request may read them.
        self._held = [_shared(x) for x in conditions]
        for place, tensor in enumerate(self._held):
            self._prepare.set_input_tensor(place, tensor)
        self._prepare.infer()
        for place in range(len(self._prepare.model_outputs)):
            self._denoise.set_input_tensor(2 + place, self._prepare.get_output_tensor(place))

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        now = _shared(x_t), _shared(t)
        for place, tensor in enumerate(now):
            self._denoise.set_input_tensor(place, tensor)
        self._denoise.infer()
        return torch.from_numpy(np.array(self._denoise.get_output_tensor(0).data))


def precisions() -> tuple[str, ...]:
    """Those in which this processor runs a network at full speed, the fastest first."""
    native = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if "BF16" in native else ("fp32",)


def _shared(tensor: Tensor) -> openvino.Tensor:
    return openvino.Tensor(np.ascontiguousarray(tensor.numpy()), shared_memory=True)


def _compiled(graph: Graph, config: dict[str, object]) -> openvino.InferRequest:
    """Not by ``openvino.convert_model``, which reports its use over the network."""
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
        # Tracing warns that shapes become constants; the engine's check shows that none matters.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph.module.eval(), graph.inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return cast(torch.jit.ScriptModule, traced)
