"""FP8 (E4M3) networks: NVIDIA's ModelOpt puts the rounding into them, TensorRT computes with it.

The scales are of the inputs that the engine is compared on, which are noise: calibrate on real
windows before you trust an FP8 engine's pictures.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from engines.example_inputs import Inputs
from engines.export import graphs_of
from engines.programs import run_all

_ROWS = 8  # of noise, at as many times


def fp8(net: nn.Module, inputs: Inputs) -> nn.Module:
    """``net`` itself, its matrix products and convolutions told to round to FP8."""
    quantization: Any = importlib.import_module("modelopt.torch.quantization")

    def show(quantised: nn.Module) -> None:
        graphs = {graph.name: graph for graph in graphs_of(quantised, inputs(2))}
        rows = inputs(_ROWS)
        for i in range(_ROWS):
            with torch.inference_mode():
                run_all(graphs, {name: x[i : i + 1] for name, x in rows.items()})

    calibrated: nn.Module = quantization.quantize(net, quantization.FP8_DEFAULT_CFG, show)
    return calibrated


def exporting(precision: str) -> AbstractContextManager[Any]:
    """Within it a network of ``precision`` can be exported."""
    if precision != "fp8":
        return nullcontext()
    utils: Any = importlib.import_module("modelopt.torch.quantization.utils")
    context: AbstractContextManager[Any] = utils.export_torch_mode()
    return context
