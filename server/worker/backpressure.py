"""How far a worker may run ahead of its reader."""

from __future__ import annotations

import asyncio

LIVE_AHEAD = 1  # so that an interrupt finds next to nothing under way
AHEAD = 8  # fragments made and not yet read: about two and a half seconds of video
READ_TIMEOUT_S = 60.0


class JobAborted(Exception):
    """Nobody wants the job any more: cancelled, expired, or its reader stopped reading."""


class ReaderGone(JobAborted):
    """The only process that could read it is gone."""


class Backpressure:
    """Back-pressure of one job; ``patience_s`` is how long a reader may stand still."""

    def __init__(self, ahead: int, patience_s: float) -> None:
        self._ahead = ahead
        self._patience_s = patience_s
        self._made = -1
        self._read = -1
        self._moved = asyncio.Event()

    def made(self, index: int) -> None:
        self._made = index

    def read(self, index: int) -> None:
        self._read = max(self._read, index)
        self._moved.set()

    @property
    def last_read(self) -> int:
        """The fragment up to which the reader has all; -1 before the first."""
        return self._read

    async def room(self) -> None:
        """Wait until the reader is near enough. Raises `JobAborted` when it does not move."""
        while self._made - self._read >= self._ahead:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), self._patience_s)
            except TimeoutError as error:
                raise JobAborted(f"no fragment was read for {self._patience_s:g} s") from error
