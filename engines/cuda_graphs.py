"""CUDA graphs: the kernels of a program, captured once for each batch size and launched as one.

Launching a thousand kernels costs the CPU milliseconds; replaying their graph costs microseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.export import Program, Tensors

_WARM_UPS = 3  # what is allocated on first use must not be captured

_Shape = tuple[tuple[int, ...], torch.dtype]


class CapturedProgram:
    """``program``, captured when it is first called with inputs of new shapes.

    Inputs may be on any device. The next call with the same shapes overwrites the outputs. Raises
    CUDA's own errors where the program cannot be captured.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._graphs: dict[tuple[_Shape, ...], tuple[torch.cuda.CUDAGraph, Tensors, Tensors]] = {}

    def __call__(self, inputs: Tensors) -> Tensors:
        shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._capture(inputs)
        graph, own, outputs = self._graphs[shapes]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return outputs

    def _capture(self, inputs: Tensors) -> tuple[torch.cuda.CUDAGraph, Tensors, Tensors]:
        own: tuple[Tensor, ...] = tuple(x.to("cuda").clone() for x in inputs)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._program(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._program(own)
        return graph, own, outputs
