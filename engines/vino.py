"""The network on OpenVINO: the engine for CPUs, x86 and Arm alike.

A window alone takes a half to a third of torch's time (`bench/network.py`) where the processor
multiplies bfloat16 (AVX512-BF16, AMX, Arm's BF16): then the weights are half as many bytes to
fetch, too. Motion is then off by less than a hundredth of its spread, pictures agree to 51 dB, and
what a batch gives is still what each row gives alone. Elsewhere it computes in single precision.
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

from engines.graphs import Example, Graph, halves
from engines.split import SplitEngine

_TOLERANCE = 0.1  # eight bits of precision through a dozen layers
_ANY = -1
_CONFIG = {
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}


class VinoEngine(SplitEngine):
    """Compiles ``net``, a `SplitNet`, on ``example``: two or more rows of all its inputs.

    One thread unless told otherwise, which goes where it can: sessions run side by side, and
    drawing takes the other cores. Raises ``ValueError`` when the compiled network does not
    reproduce ``net``.
    """

    def __init__(self, net: nn.Module, example: Example, threads: int = 1) -> None:
        context, denoise = halves(net, example)
        super().__init__(context.names)
        self._prepare, self._denoise = (_compiled(half, threads) for half in (context, denoise))
        self._held: list[openvino.Tensor] = []
        self.check(net, example, _TOLERANCE)

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


def _shared(tensor: Tensor) -> openvino.Tensor:
    return openvino.Tensor(np.ascontiguousarray(tensor.numpy()), shared_memory=True)


def _compiled(graph: Graph, threads: int) -> openvino.InferRequest:
    """Not by ``openvino.convert_model``, which reports its use over the network."""
    front_end = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(_traced(graph), example_input=graph.inputs)
    model = front_end.convert(front_end.load(decoder))
    shapes = (
        [_ANY if axis == batch else size for axis, size in enumerate(x.shape)]
        for x, batch in zip(graph.inputs, graph.axes, strict=True)
    )
    model.reshape({place: openvino.PartialShape(shape) for place, shape in enumerate(shapes)})
    config = {**_CONFIG, "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(model, "CPU", config).create_infer_request()


def _traced(graph: Graph) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns that shapes become constants; the engine's check shows that none matters.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph.module.eval(), graph.inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return cast(torch.jit.ScriptModule, traced)
