"""A worker's memory goes back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

from server.worker import memory


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc keeps what is freed",
)
def test_what_is_freed_between_what_is_kept_is_given_back() -> None:
    blocks = [bytes([n % 7]) * 20_000 for n in range(5_000)]
    kept = blocks[::50]
    full = resident_mb()
    del blocks
    asyncio.run(memory.give_back())
    assert resident_mb() < full - 60  # of 95
    assert len(kept) == 100


def test_what_was_loaded_is_not_looked_at_again() -> None:
    ring: list[object] = []
    ring.append(ring)
    memory.set_aside_loaded()
    try:
        assert gc.get_freeze_count() > 1000
        assert not any(one is ring for one in gc.get_objects())
        late: list[object] = []
        late.append(late)
        del late
        assert gc.collect() >= 1  # what comes later is collected as ever
    finally:
        gc.unfreeze()
