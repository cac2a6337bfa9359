"""How far a worker may run ahead of its reader."""

from __future__ import annotations

import asyncio

LIVE_AHEAD = 1  # an interrupt finds at most one fragment under way
AHEAD = 8  # fragments published and not yet read: about two and a half seconds of video
READ_TIMEOUT_S = 60.0


class JobAborted(Exception):
    """The job is not wanted any more: cancelled, expired, or its reader stopped reading."""


class ReaderGone(JobAborted):
    """The only process that could read it is gone."""


class Backpressure:
    """Of one job; ``patience_s`` is how long a reader may stand still."""

    def __init__(self, ahead: int, patience_s: float) -> None:
        self._ahead = ahead
        self._patience_s = patience_s
        self._published = -1
        self._read = -1
        self._moved = asyncio.Event()

    def published(self, index: int) -> None:
        """Fragments up to ``index`` are there to be read."""
        self._published = index

    def read(self, index: int) -> None:
        """The reader has fragments up to ``index``; reports may come out of order."""
        self._read = max(self._read, index)
        self._moved.set()

    @property
    def last_read(self) -> int:
        """The fragment up to which the reader has all; -1 before the first."""
        return self._read

    async def wait_for_reader(self) -> None:
        """Return once the reader is near enough. Raises `JobAborted` when it does not move."""
        while self._published - self._read >= self._ahead:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), self._patience_s)
            except TimeoutError as error:
                raise JobAborted(f"no fragment was read for {self._patience_s:g} s") from error
