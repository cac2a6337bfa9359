"""A network on OpenVINO: the engine for CPUs, x86 and Arm alike.

A single window takes a third to a half of torch's time (`bench/network.py`) on processors that
multiply bfloat16 (AVX512-BF16, AMX, Arm's BF16), since half as many bytes of weights are read.
A row's result does not depend on its batch, in either precision.

What is converted and compiled once (`engines.openvino_convert`) runs here without torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino

from model.diffusion.arrays import Array, like
from model.diffusion.denoiser import Conditions

GRAPHS = ("context", "denoise")
_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names
_CONFIG = {
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}
Context = tuple[openvino.Tensor, ...]
Models = Mapping[str, openvino.Model | Path]


class OpenVINONet:
    """A `SplitNet` that takes any batch, of numpy's arrays or torch's tensors.

    ``models``: by the names of `GRAPHS`, in memory or on disk; ``names``: of the conditions, in the
    order of the inputs of ``context``. One thread by default: sessions run side by side, and
    drawing takes the other cores. ``precision`` is one of `precisions`.
    """

    def __init__(
        self,
        models: Models,
        names: tuple[str, ...],
        *,
        threads: int = 1,
        precision: str = "fp32",
    ) -> None:
        config = {
            **_CONFIG,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[precision],
        }
        self.models, self.names = models, names
        self.threads, self.precision = threads, precision
        self._context, self._denoise = (_compiled(models[name], config) for name in GRAPHS)
        self._inputs: list[openvino.Tensor] = []
        self._bound: Context | None = None

    def context(self, cond: Conditions) -> Context:
        """The request's own output tensors: the next call overwrites them."""
        # Inputs are shared, not copied: they must live as long as the request may read them.
        self._inputs = [_shared(cond[name]) for name in self.names]
        for place, tensor in enumerate(self._inputs):
            self._context.set_input_tensor(place, tensor)
        self._context.infer()
        outputs = range(len(self._context.model_outputs))
        return tuple(self._context.get_output_tensor(place) for place in outputs)

    def denoise(self, x_t: Array, t: Array, context: Context) -> Array:
        inputs = _shared(x_t), _shared(t)
        for place, tensor in enumerate(inputs):
            self._denoise.set_input_tensor(place, tensor)
        if context is not self._bound:
            for place, tensor in enumerate(context, len(inputs)):
                self._denoise.set_input_tensor(place, tensor)
            self._bound = context
        self._denoise.infer()
        return like(np.array(self._denoise.get_output_tensor(0).data), x_t)


def precisions() -> tuple[str, ...]:
    """Those that this processor runs at full speed, the fastest first."""
    native = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if "BF16" in native else ("fp32",)


def _shared(x: Array) -> openvino.Tensor:
    return openvino.Tensor(np.ascontiguousarray(x), shared_memory=True)


def _compiled(model: openvino.Model | Path, config: Mapping[str, object]) -> openvino.InferRequest:
    """Of a file, what OpenVINO compiles is kept beside it."""
    if isinstance(model, Path) and os.access(model.parent, os.W_OK):
        config = {**config, "CACHE_DIR": str(model.parent)}
    return openvino.Core().compile_model(model, "CPU", dict(config)).create_infer_request()
