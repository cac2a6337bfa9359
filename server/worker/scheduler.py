"""Which sessions' windows run together next: a pure data structure, without clock or I/O.

Deadlines are numbers on any clock the caller likes; nothing here reads one.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ScheduledWindow(Generic[T]):
    """One session's window with the time by which it is wanted."""

    session: str
    deadline_s: float
    work: T


class BatchScheduler(Generic[T]):
    """Turns go in by `add`, out by `next_batch`, and end by `done` or `abort`.

    Among equal deadlines the first added goes first, so sessions without one take turns.
    """

    def __init__(self, max_batch: int) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self._max_batch = max_batch
        self._heap: list[tuple[float, int, ScheduledWindow[T]]] = []
        self._order = itertools.count()
        self._waiting: dict[str, ScheduledWindow[T]] = {}
        self._in_flight: set[str] = set()

    def add(self, turn: ScheduledWindow[T]) -> None:
        """Raises ``ValueError`` when the session has a turn waiting or in flight."""
        if turn.session in self._waiting or turn.session in self._in_flight:
            raise ValueError(f"session {turn.session!r} has a window under way already")
        self._waiting[turn.session] = turn
        heapq.heappush(self._heap, (turn.deadline_s, next(self._order), turn))

    def next_batch(self) -> list[ScheduledWindow[T]]:
        """Up to ``max_batch`` turns, the most urgent first; they are in flight until `done`."""
        batch: list[ScheduledWindow[T]] = []
        while self._heap and len(batch) < self._max_batch:
            _, _, turn = heapq.heappop(self._heap)
            if self._waiting.get(turn.session) is turn:  # else it was aborted
                del self._waiting[turn.session]
                self._in_flight.add(turn.session)
                batch.append(turn)
        return batch

    def done(self, session: str) -> None:
        """The session's turn in flight has ended; its next may be added."""
        self._in_flight.discard(session)

    def abort(self, session: str) -> None:
        """Forget the session's waiting turn, if any. One in flight still has to be `done`."""
        self._waiting.pop(session, None)
