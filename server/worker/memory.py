"""Keep a worker's memory at what its current sessions need, however many come and go."""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD = -3  # glibc's mallopt.h
_LARGE_BYTES = 1 << 18


def map_large_blocks() -> bool:
    """Have glibc map each picture and tensor by itself; False with another C library.

    By default glibc raises the threshold to the largest block ever freed and keeps smaller blocks
    in its heap, which then grows for hours by the holes that ended sessions leave.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    except (AttributeError, OSError, TypeError):  # not glibc
        return False


def pause_gc() -> None:
    """Collect no garbage until `freeze_gc_heap`, and what is loaded now never: it stays."""
    gc.disable()
    gc.freeze()


def freeze_gc_heap() -> None:
    """Mark all that is loaded as permanent, so that the garbage collector ignores it.

    Otherwise a full collection scans some 300,000 objects of libraries and networks, and only runs
    once a quarter as many are new, while pictures of ended sessions take memory.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
