"""When packets are sent: in the video's own time, however fragments arrive."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from av.packet import Packet

_LATE_S = 0.005  # less is the event loop's own unrest
_SLACK_S = 0.01  # kept of what fragments arrive too early
_HURRY = 0.05  # of real time, to make up for a stall
_FRAGMENTS_WATCHED = 12
_POLL_S = 0.02


@dataclass(frozen=True, order=True)
class Timed:
    """A packet with its time in the video, in seconds."""

    time_s: float
    order: int
    video: bool
    packet: Packet[Any]


class Playout:
    """Sends packets of both tracks on one clock, so that they stay in sync.

    The clock is moved back where packets are late, and slowly forward again where they wait.
    """

    def __init__(self, send: Callable[[bool, Packet[Any]], None]) -> None:
        self._send = send
        self._waiting: list[Timed] = []
        self._orders = itertools.count()
        self._origin_s: float | None = None  # when time 0 of the video is played
        self._early: deque[float] = deque(maxlen=_FRAGMENTS_WATCHED)
        self._changed = asyncio.Event()

    def add(self, packets: Iterable[tuple[float, bool, Packet[Any]]], duration_s: float) -> None:
        """Queue a fragment's packets: time in the video, whether video, packet."""
        first_s = None
        for time_s, video, packet in packets:
            first_s = time_s if first_s is None else min(first_s, time_s)
            heapq.heappush(self._waiting, Timed(time_s, next(self._orders), video, packet))
        if first_s is None:
            return
        if self._origin_s is not None:
            early_s = self._origin_s + first_s - time.monotonic()
            if early_s < -_LATE_S:
                self._origin_s -= early_s
                self._early.clear()
            self._early.append(early_s)
            if len(self._early) == _FRAGMENTS_WATCHED and min(self._early) > _SLACK_S:
                self._origin_s -= min(min(self._early) - _SLACK_S, _HURRY * duration_s)
        self._changed.set()

    def skip_to(self, time_s: float) -> None:
        """Play ``time_s`` now: pictures before it are sent at once, sound before it is dropped."""
        self._waiting = [one for one in self._waiting if one.video or one.time_s >= time_s]
        heapq.heapify(self._waiting)
        self._origin_s = time.monotonic() - time_s
        self._early.clear()
        self._changed.set()

    async def run(self) -> None:
        """Send what is due, for ever."""
        while True:
            self._changed.clear()
            wait_s = self._send_due()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _send_due(self) -> float | None:
        """Send what is due; return the seconds until more is, or ``None``."""
        while self._waiting:
            now_s, first = time.monotonic(), self._waiting[0]
            if self._origin_s is None:
                self._origin_s = now_s - first.time_s
            due_s = self._origin_s + first.time_s
            if due_s > now_s:
                return due_s - now_s
            heapq.heappop(self._waiting)
            self._send(first.video, first.packet)
        return None

    async def empty(self) -> None:
        """Wait until everything has been sent."""
        while self._waiting:
            await asyncio.sleep(_POLL_S)
