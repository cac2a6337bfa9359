"""The core's arrays: torch's tensors, or numpy's where a network runs without torch.

Arithmetic, indexing and most functions are the same for both. This module has the rest, so that a
worker whose engines need no torch does not load it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# A function that takes several takes all of one kind, and returns that kind.
Array: TypeAlias = Any


def functions(x: Array) -> Any:
    """numpy or torch, whichever has the functions for ``x``."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def filled(x: Array, value: float) -> Array:
    """(B,) of ``value`` for ``x`` (B, ...): of its kind, type and device."""
    size = (len(x),)
    return np.full(size, value, x.dtype) if isinstance(x, np.ndarray) else x.new_full(size, value)


def like(values: NDArray[Any], x: Array) -> Array:
    """``values`` as an array of the kind, type and device of ``x``; may share their memory."""
    if isinstance(x, np.ndarray):
        return np.asarray(values, x.dtype)
    return sys.modules["torch"].from_numpy(values).to(x)


def to_numpy(x: Array) -> NDArray[Any]:
    """``x`` on the CPU; may share its memory."""
    return x if isinstance(x, np.ndarray) else np.asarray(x.cpu().numpy())


def no_gradients(x: Array) -> AbstractContextManager[Any]:
    """What is computed from ``x`` in this context is not recorded for gradients."""
    return nullcontext() if isinstance(x, np.ndarray) else sys.modules["torch"].no_grad()
