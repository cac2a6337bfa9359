"""What this process uses of the machine's cores, and what is left, by the kernel's account."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_WINDOW_S = 2.0
_NICE, _IDLE, _IOWAIT, _FIELDS = 1, 3, 4, 8  # of a core's line; after _FIELDS: of guests


@dataclass(frozen=True)
class Cores:
    """Cores, over the last seconds: ``used`` by this process, and ``left`` by all, which are idle
    or busy at low priority, as with offline jobs."""

    used: float
    left: float


class HostLoad:
    """Reads what the cores that this process may use have done."""

    def __init__(
        self,
        stat: Path = _STAT,
        clock: Callable[[], float] = time.monotonic,
        *,
        used_s: Callable[[], float] = time.process_time,
        hertz: int = 0,
    ) -> None:
        self._stat, self._clock, self._used_s = stat, clock, used_s
        self._hertz = hertz or os.sysconf("SC_CLK_TCK")
        self._readings: deque[tuple[float, float, float]] = deque()

    def read(self) -> Cores | None:
        """Call it regularly. None at first, and where the kernel does not say."""
        ticks, now_s, used_s = self._ticks(), self._clock(), self._used_s()
        if ticks is None:
            return None
        self._readings.append((now_s, used_s, ticks / self._hertz))
        while len(self._readings) > 2 and self._readings[1][0] <= now_s - _WINDOW_S:
            self._readings.popleft()
        began_s, *before = self._readings[0]
        passed_s = now_s - began_s
        if passed_s < _WINDOW_S / 2:
            return None
        used, left = (
            (now - then) / passed_s
            for now, then in zip(self._readings[-1][1:], before, strict=True)
        )
        return Cores(used, left)

    def _ticks(self) -> int | None:
        try:
            usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            lines = [line.split() for line in self._stat.read_text().splitlines()]
        except (AttributeError, OSError):  # not Linux
            return None
        found = [[int(word) for word in words[1:]] for words in lines if words[0] in usable]
        return sum(one[_NICE] + one[_IDLE] + one[_IOWAIT] for one in found)
