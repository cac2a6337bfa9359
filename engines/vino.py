"""The network on OpenVINO: the engine for CPUs, x86 and Arm alike.

Three times as fast as torch (`bench/network.py`) where the processor multiplies bfloat16
(AVX512-BF16, AMX, Arm's BF16): then the weights are half as many bytes to fetch, too. Motion is
then off by less than a hundredth of its spread, pictures agree to 54 dB, and what a batch gives is
still what each row gives alone. Elsewhere it computes in single precision.
"""

from __future__ import annotations

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from engines.split import Example, SplitEngine, condition_names, traced_halves

_TOLERANCE = 0.1  # eight bits of precision through a dozen layers
_ANY = -1
# Sessions run side by side, and drawing takes the other cores: one thread, which goes where it can.
_CONFIG = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}


class VinoEngine(SplitEngine):
    """Compiles ``net``, a `SplitNet`, on ``example``: two or more rows of all its inputs.

    Raises ``ValueError`` when the compiled network does not reproduce ``net``.
    """

    def __init__(self, net: nn.Module, example: Example) -> None:
        names = condition_names(example)
        super().__init__(names)
        context, denoise = traced_halves(net, example)
        rows = [tuple(example[name] for name in names), (example["x_t"], example["t"])]
        with torch.inference_mode():
            rows[1] += tuple(context(*rows[0]))
            row = [tuple(x[:1] for x in rows[0]), (example["x_t"][:1], example["t"][:1])]
            row[1] += tuple(context(*row[0]))
        self._prepare = _compiled(context, rows[0], row[0])
        self._denoise = _compiled(denoise, rows[1], row[1])
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


def _compiled(
    graph: torch.jit.ScriptModule, rows: tuple[Tensor, ...], row: tuple[Tensor, ...]
) -> openvino.InferRequest:
    """``rows`` and ``row`` are inputs of several rows and of one: where they differ is the batch.

    Not by ``openvino.convert_model``, which reports its use over the network.
    """
    front_end = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(graph, example_input=rows)
    model = front_end.convert(front_end.load(decoder))
    model.reshape(
        {
            place: openvino.PartialShape(
                [n if n == m else _ANY for n, m in zip(many.shape, one.shape, strict=True)]
            )
            for place, (many, one) in enumerate(zip(rows, row, strict=True))
        }
    )
    return openvino.Core().compile_model(model, "CPU", _CONFIG).create_infer_request()
