"""CUDA graphs: the kernels of a program, captured once for each batch size and launched as one.

Launching a thousand kernels costs the CPU milliseconds; replaying their graph costs microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engines.export import Program, Tensors

_WARM_UPS = 3  # what is allocated on first use must not be captured
_FINE, _STEP = (1, 2, 4), 8

_Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class _Captured:
    """``program`` is kept, for the graph uses its memory."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors
    program: Program


def capture_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes to capture for batches of up to ``most``: 1, 2, 4, 8, 16, 24, …

    The sizes between are padded: a graph for each would take memory and seconds at the start.
    """
    return tuple(sorted({s for s in (*_FINE, *range(_STEP, most, _STEP)) if s < most} | {most}))


class CapturedProgram:
    """``program``, captured when it is first called with inputs of new shapes.

    Inputs may be on any device. The next call with the same shapes overwrites the outputs. Raises
    CUDA's own errors where the program cannot be captured.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._graphs: dict[tuple[_Shape, ...], _Captured] = {}

    def __call__(self, inputs: Tensors) -> Tensors:
        shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._capture(inputs)
        captured = self._graphs[shapes]
        for mine, given in zip(captured.inputs, inputs, strict=True):
            mine.copy_(given)
        captured.graph.replay()
        return captured.outputs

    def _capture(self, inputs: Tensors) -> _Captured:
        own: tuple[Tensor, ...] = tuple(x.to("cuda").clone() for x in inputs)
        # TensorRT's graphs use their execution context's memory: each needs a context of its own.
        fork = getattr(self._program, "fork", None)
        program = self._program if fork is None else fork()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                program(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: only what this one does is restricted.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = program(own)
        return _Captured(graph, own, outputs, program)
