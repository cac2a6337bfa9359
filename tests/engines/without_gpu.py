"""torch-tensorrt's builder on a machine without a GPU.

TensorRT for RTX builds engines on any machine, but torch-tensorrt asks for a GPU's properties and
deserialises what it built. Here the properties are an RTX 4090's, and the plan stays as TensorRT's
builder wrote it. Running it needs a GPU.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

MEMORY = 24 * 2**30


@contextmanager
def builder() -> Iterator[None]:
    """Makes `engines.tensorrt.build` work. Raises ``ImportError`` without torch-tensorrt."""
    is_file = os.path.isfile

    def no_library(path: str) -> bool:  # torch-tensorrt's own would load CUDA's driver
        return "libtorchtrt" not in str(path) and is_file(path)

    with ExitStack() as stack:
        for name, answer in {
            "current_device": lambda: 0,
            "get_device_capability": lambda *_: (8, 9),
            "mem_get_info": lambda *_: (MEMORY, MEMORY),
        }.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        if not hasattr(torch._C, "_CudaDeviceProperties"):
            kind = type("_CudaDeviceProperties", (), {})
            stack.enter_context(patch.object(torch._C, "_CudaDeviceProperties", kind, create=True))
        with patch.object(os.path, "isfile", no_library):
            importlib.import_module("torch_tensorrt")
        tensorrt: Any = importlib.import_module("tensorrt")
        stack.enter_context(patch.object(tensorrt, "Runtime", _NoRuntime))
        yield


class _NoRuntime:
    """Replaces TensorRT's runtime: a plan stays a plan."""

    def __init__(self, _log: object) -> None:
        pass

    def deserialize_cuda_engine(self, plan: Any) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: plan)
