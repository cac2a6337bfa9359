"""FP8 (E4M3) networks: NVIDIA's ModelOpt inserts the rounding, TensorRT computes with it.

The scales are calibrated on the inputs that the engine is compared on, which are noise: calibrate
on real windows before you trust the pictures of an FP8 engine.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from engines.base import run_programs
from engines.example_inputs import Inputs
from engines.export import graphs_of

_ROWS = 8  # of noise, each at a time t of its own


def quantize(net: nn.Module, inputs: Inputs) -> nn.Module:
    """``net`` itself, whose matrix products and convolutions now round to FP8."""
    quantization: Any = importlib.import_module("modelopt.torch.quantization")

    def calibrate(rounding: nn.Module) -> None:
        graphs = {graph.name: graph for graph in graphs_of(rounding, inputs(2))}
        rows = inputs(_ROWS)
        for i in range(_ROWS):
            with torch.inference_mode():
                run_programs(graphs, {name: x[i : i + 1] for name, x in rows.items()})

    quantized: nn.Module = quantization.quantize(net, quantization.FP8_DEFAULT_CFG, calibrate)
    return quantized


def exportable(precision: str) -> AbstractContextManager[Any]:
    """Within it a network of ``precision`` can be exported."""
    if precision != "fp8":
        return nullcontext()
    utils: Any = importlib.import_module("modelopt.torch.quantization.utils")
    context: AbstractContextManager[Any] = utils.export_torch_mode()
    return context
