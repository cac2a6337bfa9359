"""CUDA graphs: a program's kernels captured once for each batch size, and launched as one after.

A launch of some thousand kernels costs the CPU milliseconds; a replay costs it microseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.export import Program, Tensors

_WARM_UPS = 3  # what is made on first use must not be captured

Shape = tuple[tuple[int, ...], torch.dtype]


class Replayed:
    """``program``, captured where it is first called with inputs of a shape.

    Inputs may be anywhere. Outputs are overwritten by the next call with the same shapes. Raises
    what CUDA raises where the program cannot be captured.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._captured: dict[tuple[Shape, ...], tuple[torch.cuda.CUDAGraph, Tensors, Tensors]] = {}

    def __call__(self, inputs: Tensors) -> Tensors:
        shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(inputs)
        graph, held, made = self._captured[shapes]
        for own, given in zip(held, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return made

    def _capture(self, inputs: Tensors) -> tuple[torch.cuda.CUDAGraph, Tensors, Tensors]:
        held: tuple[Tensor, ...] = tuple(x.to("cuda").clone() for x in inputs)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._program(held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = self._program(held)
        return graph, held, made
