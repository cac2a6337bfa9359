"""A conversation's sound in, windows out whenever they are wanted, whole or not.

Knows: which rows of sound are past and which are to come, so that a window can be had early, in
part, or of silence alone, and so that what is to come can be dropped. `model.audio.windows` cuts
the same rows from a speech that arrives whole. Does not know clocks, sockets or sample rates
other than 16 kHz.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.audio.features import PAST_SAMPLES, ROW_SAMPLES, row, silence_row
from model.audio.windows import HOP, LOOKAHEAD, PREFIX
from model.conditioning import SAMPLES_PER_FRAME, Floats, Window

WANTED_ROWS = HOP + LOOKAHEAD


class LiveWindower:
    """Rows of sound, those already shown and those to come; under two seconds of them if the
    caller pushes no more than `missing` rows ask for.

    Within an unbroken speech its windows are bit-identical to those of `AudioWindower`.
    """

    def __init__(self) -> None:
        self._past: list[Floats] = [silence_row()] * PREFIX
        self._coming: list[Floats] = []
        self._pending: Floats = np.zeros(PAST_SAMPLES, np.float32)

    def state(self) -> dict[str, Floats]:
        """Everything needed to go on elsewhere: under 40 KB."""
        rows = np.stack([*self._past, *self._coming])
        return {"rows": rows, "pending": self._pending}

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[np.generic]]) -> LiveWindower:
        """The windower that gave ``state``."""
        windower = cls()
        rows = list(state["rows"].astype(np.float32))
        windower._past, windower._coming = rows[:PREFIX], rows[PREFIX:]
        windower._pending = state["pending"].astype(np.float32)
        return windower

    @property
    def rows(self) -> int:
        """How many rows to come are known."""
        return len(self._coming)

    @property
    def missing(self) -> int:
        """How many rows a whole window still wants."""
        return max(0, WANTED_ROWS - len(self._coming))

    def push(self, pcm: NDArray[np.float32]) -> None:
        """(N,) mono samples at 16 kHz, full scale ±1. Raises ``ValueError`` for other shapes."""
        if pcm.ndim != 1:
            raise ValueError(f"pcm has shape {pcm.shape}, expected (samples,)")
        samples = np.concatenate([self._pending, pcm]).astype(np.float32, copy=False)
        start = 0
        while start + ROW_SAMPLES <= len(samples):
            self._coming.append(row(samples[start : start + ROW_SAMPLES]))
            start += SAMPLES_PER_FRAME
        self._pending = samples[start:].copy()

    def end_of_speech(self) -> None:
        """Silence follows what was pushed: the frame that is begun becomes whole, and only it."""
        begun = len(self._pending) - PAST_SAMPLES
        if begun > 0:
            # Whole frame, then what its row hears beyond it; a later speech starts afresh.
            self.push(np.zeros(-begun % SAMPLES_PER_FRAME + PAST_SAMPLES, np.float32))
        self._pending = np.zeros(PAST_SAMPLES, np.float32)

    def window(self, index: int, frames: int, *, rest: bool) -> Window:
        """The next window, for ``frames`` new frames; rows that are not known are silence.

        With ``rest`` its new frames are silent, and what is to come comes after them.
        """
        if not 1 <= frames <= HOP:
            raise ValueError(f"frames = {frames}, expected 1 to {HOP}")
        before = [silence_row()] * (frames if rest else 0)
        coming = [*before, *self._coming][:WANTED_ROWS]
        silent = [silence_row()] * (WANTED_ROWS - len(coming))
        return Window(index, np.stack([*self._past, *coming, *silent]), frames)

    def shown(self, frames: int) -> None:
        """``frames`` more frames of what was to come are past; there must be as many."""
        self._past = [*self._past, *self._coming[:frames]][-PREFIX:]
        del self._coming[:frames]

    def rested(self, frames: int) -> None:
        """``frames`` more frames of silence are past; what is to come still is."""
        self._past = [*self._past, *[silence_row()] * frames][-PREFIX:]

    def drop(self) -> None:
        """Forget all that is to come; what was shown stays past."""
        self._coming.clear()
        self._pending = np.zeros(PAST_SAMPLES, np.float32)
