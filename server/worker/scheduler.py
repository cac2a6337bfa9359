"""Which sessions' windows run together next: a pure data structure, without clock or I/O.

Deadlines are numbers on any clock of the caller's.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ScheduledWindow(Generic[T]):
    """One session's window and the time by which it is wanted."""

    session: str
    deadline_s: float
    work: T


class BatchScheduler(Generic[T]):
    """Earliest deadline first. In by `add`, out by `next_batch`, ended by `done` or `abort`.

    Among equal deadlines the first added goes first, so sessions without one take turns.
    """

    def __init__(self, max_batch: int) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch = {max_batch}, expected at least 1")
        self.max_batch = max_batch  # may change between batches
        self._heap: list[tuple[float, int, ScheduledWindow[T]]] = []
        self._order = itertools.count()
        self._waiting: dict[str, ScheduledWindow[T]] = {}
        self._in_flight: set[str] = set()

    def add(self, window: ScheduledWindow[T]) -> None:
        """Raises ``ValueError`` when the session has a window waiting or in flight."""
        if window.session in self._waiting or window.session in self._in_flight:
            raise ValueError(
                f"session {window.session!r} already has a window waiting or in flight"
            )
        self._waiting[window.session] = window
        heapq.heappush(self._heap, (window.deadline_s, next(self._order), window))

    def next_batch(self) -> list[ScheduledWindow[T]]:
        """Up to ``max_batch`` windows, the most urgent first; they are in flight until `done`."""
        batch: list[ScheduledWindow[T]] = []
        while self._heap and len(batch) < self.max_batch:
            _, _, window = heapq.heappop(self._heap)
            if self._waiting.get(window.session) is window:  # otherwise it was aborted
                del self._waiting[window.session]
                self._in_flight.add(window.session)
                batch.append(window)
        return batch

    def done(self, session: str) -> None:
        """The session's window in flight has ended; its next may be added."""
        self._in_flight.discard(session)

    def abort(self, session: str) -> None:
        """Forget the session's waiting window, if any. One in flight still has to be `done`."""
        self._waiting.pop(session, None)
