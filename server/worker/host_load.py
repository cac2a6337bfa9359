"""How much of this machine's cores is left, by the kernel's account."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/stat")
_WINDOW_S = 2.0
_NICE, _IDLE, _IOWAIT, _FIELDS = 1, 3, 4, 8  # of a core's line; after _FIELDS: of guests


class HostLoad:
    """Reads what the cores that this process may use have done; `cores_left` is the answer."""

    def __init__(
        self, stat: Path = _STAT, clock: Callable[[], float] = time.monotonic, *, hertz: int = 0
    ) -> None:
        self._stat, self._clock = stat, clock
        self._hertz = hertz or os.sysconf("SC_CLK_TCK")
        self._readings: deque[tuple[float, int]] = deque()

    def cores_left(self) -> float | None:
        """Cores idle, or busy at low priority, over the last seconds; call it regularly.

        Low priority is what offline jobs run at. None at first, and where the kernel does not say.
        """
        ticks, now_s = self._ticks(), self._clock()
        if ticks is None:
            return None
        self._readings.append((now_s, ticks))
        while len(self._readings) > 2 and self._readings[1][0] <= now_s - _WINDOW_S:
            self._readings.popleft()
        began_s, before = self._readings[0]
        if now_s - began_s < _WINDOW_S / 2:
            return None
        return (ticks - before) / self._hertz / (now_s - began_s)

    def _ticks(self) -> int | None:
        try:
            usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            lines = [line.split() for line in self._stat.read_text().splitlines()]
        except (AttributeError, OSError):  # not Linux
            return None
        found = [[int(word) for word in words[1:]] for words in lines if words[0] in usable]
        return sum(one[_NICE] + one[_IDLE] + one[_IOWAIT] for one in found)
