"""Memory that jobs leave behind goes back to the system.

Knows: Python's collector and the C library's allocator. Does not know jobs.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

_Trim = Callable[[int], int]


def _trim() -> _Trim | None:
    """glibc's ``malloc_trim``; other C libraries have none, and no need of it."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


_malloc_trim = _trim()


def set_aside_loaded() -> None:
    """What is loaded by now stays: the collector need not look at it again.

    Else a full collection goes through some 300,000 objects of libraries and networks, and is put
    off until a quarter as many are new, with ended sessions' pictures lying about meanwhile.
    """
    gc.collect()
    gc.freeze()


async def give_back() -> None:
    """What is freed but scattered between what is not goes back to the system, page by page.

    glibc by itself gives back only the heap's end; with sessions that come and go the heap would
    grow by the holes between them, for hours.
    """
    if _malloc_trim is not None:
        await asyncio.to_thread(_malloc_trim, 0)
