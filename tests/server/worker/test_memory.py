"""A worker's memory stays at what it needs."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest

from server.worker import memory

HOLES = """
import os
import numpy as np
from server.worker import memory

def resident_mb():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

assert memory.map_large_blocks()
np.ones(1 << 21)  # 16 MB: from now on, glibc by itself would keep 1 MB in the heap
pictures, kept = [], []
for _ in range(200):
    pictures.append(np.ones(1 << 17))
    kept.append(bytes(2000))
full = resident_mb()
del pictures
print(full - resident_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps the memory")
def test_freed_pictures_return_their_memory_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, check=True, text=True)
    assert float(done.stdout) > 180  # of 200 MB


def test_the_loaded_heap_is_frozen() -> None:
    ring: list[object] = []
    ring.append(ring)
    memory.freeze_gc_heap()
    try:
        assert gc.get_freeze_count() > 1000
        assert not any(one is ring for one in gc.get_objects())
        late: list[object] = []
        late.append(late)
        del late
        assert gc.collect() >= 1  # what comes later is collected as ever
    finally:
        gc.unfreeze()
