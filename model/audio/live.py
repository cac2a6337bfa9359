"""A conversation's sound in, windows out whenever they are wanted, whole or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from model.audio.frontend import AudioFrontend, AudioWindowSpec, samples_per_row
from model.audio.windows import LOG_MEL, stacked
from model.types import SAMPLES_PER_FRAME, Floats, Window


class _Row:
    """One frame's row, computed when it is first wanted: that may take a network's time."""

    def __init__(self, frontend: AudioFrontend, samples: Floats) -> None:
        self._front_end, self._samples = frontend, samples
        self._made: Floats | None = None

    def __call__(self) -> Floats:
        if self._made is None:
            self._made = self._front_end.row(self._samples)
        return self._made


_Rows = list[Callable[[], Floats]]


class LiveWindower:
    """Rows of sound, those already shown and those to come; about a window of them if the caller
    pushes no more than `missing` rows ask for.

    Within an unbroken speech its windows are bit-identical to those of `AudioWindower`.
    """

    def __init__(self, window_spec: AudioWindowSpec = LOG_MEL) -> None:
        self._window_spec = window_spec
        self._past: _Rows = self._silence(window_spec.past)
        self._coming: _Rows = []
        self._pending: Floats = self._silent_past()

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything needed to go on elsewhere; under 40 KB with log-mel rows."""
        rows = stacked([row() for row in (*self._past, *self._coming)], self._window_spec)
        return {"rows": rows, "pending": self._pending}

    @classmethod
    def restore(
        cls, state: Mapping[str, NDArray[np.generic]], window_spec: AudioWindowSpec = LOG_MEL
    ) -> LiveWindower:
        """The windower that gave ``state``."""
        windower = cls(window_spec)
        rows: _Rows = [_known(row) for row in state["rows"].astype(np.float32)]
        windower._past, windower._coming = rows[: window_spec.past], rows[window_spec.past :]
        windower._pending = state["pending"].astype(np.float32)
        return windower

    @property
    def window_spec(self) -> AudioWindowSpec:
        """What a window is."""
        return self._window_spec

    @property
    def rows(self) -> int:
        """How many rows to come are known."""
        return len(self._coming)

    @property
    def missing(self) -> int:
        """How many rows a whole window still wants."""
        return max(0, self._window_spec.future_rows - len(self._coming))

    def push(self, pcm: NDArray[np.float32]) -> None:
        """(N,) mono samples at 16 kHz, full scale ±1. Raises ``ValueError`` for other shapes."""
        if pcm.ndim != 1:
            raise ValueError(f"pcm has shape {pcm.shape}, expected (samples,)")
        samples = np.concatenate([self._pending, pcm]).astype(np.float32, copy=False)
        frontend = self._window_spec.frontend
        start, count = 0, samples_per_row(frontend)
        while start + count <= len(samples):
            self._coming.append(_Row(frontend, samples[start : start + count]))
            start += SAMPLES_PER_FRAME
        self._pending = samples[start:].copy()

    def end_of_speech(self) -> None:
        """Silence follows what was pushed: frames that are begun become whole, and only they."""
        frontend = self._window_spec.frontend
        begun = len(self._pending) - frontend.past_samples
        if begun > 0:
            # Whole frames, then what their rows hear beyond them; a later speech starts afresh.
            beyond = -begun % SAMPLES_PER_FRAME + frontend.future_samples
            self.push(np.zeros(beyond, np.float32))
        self._pending = self._silent_past()

    def window(self, index: int, frames: int, *, rest: bool) -> Window:
        """The next window, for ``frames`` new frames; rows that are not known are silence.

        With ``rest`` its new frames are silent, and what is to come comes after them.
        """
        return self.planned(index, frames, rest=rest)()

    def planned(self, index: int, frames: int, *, rest: bool) -> Callable[[], Window]:
        """The `window` that would come now, to be computed on another thread, perhaps, and later.

        Nothing that happens meanwhile changes it.
        """
        if not 1 <= frames <= self._window_spec.hop:
            raise ValueError(f"frames = {frames}, expected 1 to {self._window_spec.hop}")
        before = self._silence(frames if rest else 0)
        coming = [*before, *self._coming][: self._window_spec.future_rows]
        silent = self._silence(self._window_spec.future_rows - len(coming))
        rows = [*self._past, *coming, *silent]
        return lambda: Window(index, np.stack([row() for row in rows]), frames)

    def shown(self, frames: int) -> None:
        """``frames`` more frames of what was to come are past; there must be as many."""
        self._past = self._latest([*self._past, *self._coming[:frames]])
        del self._coming[:frames]

    def rested(self, frames: int) -> None:
        """``frames`` more frames of silence are past; what is to come still is."""
        self._past = self._latest([*self._past, *self._silence(frames)])

    def drop(self) -> None:
        """Forget all that is to come; what was shown stays past."""
        self._coming.clear()
        self._pending = self._silent_past()

    def _latest(self, rows: _Rows) -> _Rows:
        return rows[len(rows) - self._window_spec.past :]

    def _silence(self, rows: int) -> _Rows:
        return [self._window_spec.frontend.silence] * rows

    def _silent_past(self) -> Floats:
        return np.zeros(self._window_spec.frontend.past_samples, np.float32)


def _known(row: Floats) -> Callable[[], Floats]:
    return lambda: row
