"""TensorRT: compiles an exported function to a plan, and runs a plan.

Works with TensorRT and with TensorRT for RTX, which PyPI alone can install. Precision is that of
the network (strong typing): nothing is reduced further.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from engines.export import Graph, Program, Tensors

_OPTIMISATION_LEVEL = 3  # of 0 to 5; TensorRT's default


def build(program: ExportedProgram, path: Path, *, graph: Graph, batch: range) -> None:
    """Compiles all of ``program``. Raises ``RuntimeError`` where an operator has no converter."""
    dynamo: Any = importlib.import_module("torch_tensorrt.dynamo")
    plan = dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=_inputs(graph, batch),
        require_full_compilation=True,
        min_block_size=1,
        disable_tf32=True,
        immutable_weights=True,
        optimization_level=_OPTIMISATION_LEVEL,
    )
    path.write_bytes(plan)


def _inputs(graph: Graph, batch: range) -> tuple[Any, ...]:
    """The smallest and the largest shape of each input; plans are tuned for the largest."""
    torch_tensorrt: Any = importlib.import_module("torch_tensorrt")
    inputs = []
    for least, most in zip(graph.rows(batch[0]), graph.rows(batch[-1]), strict=True):
        if least.shape == most.shape:
            inputs.append(torch_tensorrt.Input(shape=tuple(most.shape), dtype=most.dtype))
        else:
            inputs.append(
                torch_tensorrt.Input(
                    min_shape=tuple(least.shape),
                    opt_shape=tuple(most.shape),
                    max_shape=tuple(most.shape),
                    dtype=most.dtype,
                )
            )
    return tuple(inputs)


def load(path: Path) -> Program:
    """Raises ``RuntimeError`` where TensorRT refuses the plan: no GPU, or a different one."""
    trt = _runtime()
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise RuntimeError("TensorRT refused the plan; see its log")
    return _Plan(trt, runtime, engine)


class _Plan:
    """Runs on the caller's stream, or on its own where that is the default stream, which TensorRT
    would synchronise."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        self._trt, self._runtime, self._engine = trt, runtime, engine
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self._inputs = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        kinds = {
            trt.float32: torch.float32,
            trt.float16: torch.float16,
            trt.bfloat16: torch.bfloat16,
        }
        self._dtypes = {name: kinds[self._engine.get_tensor_dtype(name)] for name in names}

    def fork(self) -> _Plan:
        """The same engine with an execution context, and its memory, of its own."""
        return _Plan(self._trt, self._runtime, self._engine)

    def __call__(self, inputs: Tensors) -> Tensors:
        kept = []  # as long as the GPU may read them
        for name, given in zip(self._inputs, inputs, strict=True):
            tensor = given.to("cuda", self._dtypes[name]).contiguous()
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
            kept.append(tensor)
        made = tuple(self._output(name) for name in self._outputs)
        caller = torch.cuda.current_stream()
        stream = self._stream if caller == torch.cuda.default_stream() else caller
        stream.wait_stream(caller)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT failed to run the plan; see its log")
        caller.wait_stream(stream)
        for tensor in (*kept, *made):
            tensor.record_stream(stream)
        return made

    def _output(self, name: str) -> Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        made = torch.empty(shape, dtype=self._dtypes[name], device="cuda")
        self._context.set_tensor_address(name, made.data_ptr())
        return made


def _runtime() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError:
        return importlib.import_module("tensorrt_rtx")
