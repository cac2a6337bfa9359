"""A worker's memory stays what its sessions need at a time, however many come and go."""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD = -3  # glibc's mallopt.h
_LARGE_BYTES = 1 << 18


def map_large_blocks() -> bool:
    """Let pictures and tensors be mapped and unmapped one by one; whether this C library does.

    glibc would raise the size from which it does so to that of the largest block ever freed, and
    keep all that is smaller in its heap, which then grows by the holes between sessions, for hours.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    except (AttributeError, OSError, TypeError):  # not glibc
        return False


def freeze_gc_heap() -> None:
    """What is loaded by now stays: the collector need not look at it again.

    Else a full collection goes through some 300,000 objects of libraries and networks, and is put
    off until a quarter as many are new, with ended sessions' pictures lying about meanwhile.
    """
    gc.collect()
    gc.freeze()
