"""Speech in any pieces in, windows of fixed shape out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.audio.frontend import AudioWindowSpec, samples_per_row
from model.audio.log_mel import LogMel
from model.types import SAMPLES_PER_FRAME, Floats, Window, pack, unpack

# Of the networks that hear log-mel rows:
PREFIX = 12  # frames already made: 0.48 s
HOP = 8  # new frames a window: 0.32 s
LOOKAHEAD = 4  # frames of sound beyond them: 0.16 s
WINDOW_FRAMES = PREFIX + HOP + LOOKAHEAD
LOG_MEL = AudioWindowSpec(LogMel(), PREFIX, HOP, LOOKAHEAD)


class AudioWindower:
    """Cuts one speech into windows as its samples arrive; keeps the rows of one, and the sound
    that the next row hears.

    Window ``w`` holds, with log-mel rows, the sound of frames 8w-12 .. 8w+11, and comes out with
    the sample that completes them. Before the first sample there is silence. Any chunking of the
    same samples gives bit-identical windows.
    """

    def __init__(self, window_spec: AudioWindowSpec = LOG_MEL) -> None:
        self._window_spec = window_spec
        self._pending: Floats = np.zeros(window_spec.frontend.past_samples, np.float32)
        self._rows: list[Floats] = [window_spec.frontend.silence()] * window_spec.past
        self._samples = 0
        self._index = 0
        self._finished = False

    def push(self, pcm: NDArray[np.float32]) -> list[Window]:
        """Mono samples at 16 kHz, full scale ±1, any number of them -> the windows they complete.

        Raises ``ValueError`` for another shape, for samples that are not finite, and after
        `finish`.
        """
        if pcm.ndim != 1:
            raise ValueError(f"pcm has shape {pcm.shape}, expected (samples,)")
        if not np.isfinite(pcm).all():
            raise ValueError("pcm holds samples that are not finite")
        if self._finished:
            raise ValueError("push after finish: this speech has ended")
        self._samples += len(pcm)
        return self._take(pcm.astype(np.float32, copy=False))

    def finish(self) -> list[Window]:
        """The last windows: silence follows the speech, and frames beyond its end are not counted.

        The frames of all windows sum to the speech's length, rounded up to a whole frame.
        Raises ``ValueError`` when there was no sample at all.
        """
        if self._samples == 0:
            raise ValueError("the audio is empty: 0 samples, expected at least 1")
        total = -(-self._samples // SAMPLES_PER_FRAME)
        windows: list[Window] = []
        silence = np.zeros(SAMPLES_PER_FRAME, np.float32)
        hop = self._window_spec.hop
        while self._index * hop < total:
            windows += self._take(silence)
        self._finished = True
        return [
            Window(w.index, w.features, min(hop, total - w.index * hop))
            for w in windows
            if w.index * hop < total
        ]

    def state(self) -> bytes:
        """Everything needed to go on elsewhere; about 30 KB with log-mel rows."""
        facts: dict[str, object] = {
            "samples": self._samples,
            "index": self._index,
            "finished": self._finished,
        }
        rows = stacked(self._rows, self._window_spec)
        return pack({"pending": self._pending, "rows": rows}, facts)

    @classmethod
    def restore(cls, state: bytes, window_spec: AudioWindowSpec = LOG_MEL) -> AudioWindower:
        """The windower that gave ``state``. Raises ``ValueError`` for other bytes."""
        arrays, facts = unpack(state)
        windower = cls(window_spec)
        windower._pending = arrays["pending"].astype(np.float32)
        windower._rows = list(arrays["rows"].astype(np.float32))
        windower._samples = int(str(facts["samples"]))
        windower._index = int(str(facts["index"]))
        windower._finished = bool(facts["finished"])
        return windower

    def _take(self, pcm: Floats) -> list[Window]:
        windows: list[Window] = []
        samples = np.concatenate([self._pending, pcm])
        window_spec, frontend = self._window_spec, self._window_spec.frontend
        start, count = 0, samples_per_row(frontend)
        while start + count <= len(samples):
            self._rows.append(frontend.row(samples[start : start + count]))
            start += SAMPLES_PER_FRAME
            if len(self._rows) == window_spec.frames:
                windows.append(Window(self._index, np.stack(self._rows), window_spec.hop))
                self._index += 1
                del self._rows[: window_spec.hop]
        self._pending = samples[start:].copy()
        return windows


def windows_of(samples: Floats, window_spec: AudioWindowSpec = LOG_MEL) -> list[Window]:
    """All windows of a whole speech: mono ``samples`` (N,) at 16 kHz. Raises ``ValueError`` as
    `AudioWindower.push`."""
    windower = AudioWindower(window_spec)
    return windower.push(samples) + windower.finish()


def stacked(rows: Sequence[Floats], window_spec: AudioWindowSpec) -> NDArray[np.generic]:
    """(len(rows), ...) in the precision in which they are kept."""
    shape = (len(rows), *window_spec.frontend.row_shape)
    return np.array(rows, dtype=window_spec.frontend.kept_as).reshape(shape)
