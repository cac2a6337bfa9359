"""One speech stream, for files and for live sessions: sound in any pieces in, windows out.

Sound is resampled, each video frame of it becomes a row of features, and rows become windows of a
fixed shape. Any chunking of the same sound gives bit-identical windows, for a row is a pure
function of the samples around its frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.audio.frontend import AudioFrontend, AudioWindowSpec, samples_per_row
from model.audio.log_mel import LOG_MEL
from model.audio.resampler import Resampler
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats, Window, pack, unpack

_FEED_BYTES = 8192
_PCM_SCALE = np.float32(32767)


def windows_of(samples: Floats, window_spec: AudioWindowSpec = LOG_MEL) -> list[Window]:
    """All windows of a whole speech: mono ``samples`` (N,) at 16 kHz.

    Raises ``ValueError`` as `SpeechStream.push` and `SpeechStream.finish`.
    """
    stream = SpeechStream(window_spec)
    stream.push(samples)
    stream.finish()
    return stream.take_windows()


class SpeechStream:
    """Sound goes in by `push` or `push_pcm`; windows come out by `take_windows`, or one by one.

    One by one: `window` gives what a window would be now, and `take` or `rest` says how many of its
    frames were shown, and gives their sound. Before the first sample there is silence. The stream
    holds about a window if no more is pushed, or filled in, than `missing` rows ask for.
    """

    def __init__(
        self, window_spec: AudioWindowSpec = LOG_MEL, rate: int = 0, *, output_rate: int = 0
    ) -> None:
        """``rate`` is of `push_pcm`; ``output_rate``, a multiple of 16 kHz, is of `take`'s sound.

        ``rate`` may be 0 without `push_pcm`, and ``output_rate`` without `take`.
        """
        self._window_spec, self._rate, self._output_rate = window_spec, rate, output_rate
        self._past: _Rows = self._silent_rows(window_spec.past)
        self._future: _Rows = []
        self._beyond = 0  # the last rows of `_future` that are after the end of a finished speech
        self._pending: Floats = self._silent_past()
        self._output: Floats = np.zeros(0, np.float32)
        self._raw: deque[bytes] = deque()
        self._odd_byte = b""  # a chunk may end inside a sample
        self._consumed_bytes = 0
        self._resampler = self._new_resampler()
        self._samples = 0
        self._finished = False

    # Sound in

    def push(self, samples: NDArray[np.float32], output: Floats | None = None) -> None:
        """(N,) mono samples at 16 kHz, full scale ±1; ``output`` is sound for `take`.

        Both are of the same speech, but need not be of the same piece of it.
        Raises ``ValueError`` for another shape, for samples that are not finite, and after
        `finish`.
        """
        if samples.ndim != 1:
            raise ValueError(f"samples have shape {samples.shape}, expected (N,)")
        if not np.isfinite(samples).all():
            raise ValueError("samples are not all finite, expected full scale ±1")
        if self._finished:
            raise ValueError("push after finish: this speech has ended")
        self._samples += len(samples)
        self._extend(samples)
        if output is not None:
            self._output = np.concatenate([self._output, output])

    def push_pcm(self, pcm: bytes) -> None:
        """Bytes of s16le mono at ``rate``, cut anywhere; they wait until `fill` takes them in."""
        self._raw.append(pcm)

    def fill(self) -> int:
        """Take in waiting bytes until a whole window is there; returns `rows`."""
        while self.missing and self._raw:
            chunk = self._raw.popleft()
            if len(chunk) > _FEED_BYTES:
                self._raw.appendleft(chunk[_FEED_BYTES:])
                chunk = chunk[:_FEED_BYTES]
            self._consumed_bytes += len(chunk)
            data = self._odd_byte + chunk
            whole = len(data) // 2 * 2
            self._odd_byte = data[whole:]
            if whole:
                self._feed(np.frombuffer(data[:whole], "<i2").astype(np.int16), last=False)
        return self.rows

    def finish(self) -> None:
        """Nothing follows, and rows beyond the end are of the silence after the speech.

        The frames of all windows sum to the speech's length, rounded up to a whole frame.
        Raises ``ValueError`` when there was no sample at all.
        """
        if self._samples == 0:
            raise ValueError("the audio is empty: 0 samples, expected at least 1")
        spec, frontend = self._window_spec, self._window_spec.frontend
        begun = len(self._pending) - frontend.past_samples
        rows = len(self._future) + -(-begun // SAMPLES_PER_FRAME)
        wanted = -(-rows // spec.hop) * spec.hop + spec.lookahead
        beyond = max(0, wanted - rows)
        silence = -begun % SAMPLES_PER_FRAME + beyond * SAMPLES_PER_FRAME + frontend.future_samples
        self._extend(np.zeros(silence, np.float32))
        self._beyond = len(self._future) - rows
        self._finished = True

    def pause(self) -> int:
        """Silence follows for now, and what is pushed later is a new speech; returns `rows`.

        Frames that are begun become whole. To be called when `fill` left nothing.
        """
        self._odd_byte = b""
        if self._resampler.has_input:
            self._feed(np.zeros(0, np.int16), last=True)
            self._resampler = self._new_resampler()
        frontend = self._window_spec.frontend
        begun = len(self._pending) - frontend.past_samples
        if begun > 0:
            beyond = -begun % SAMPLES_PER_FRAME + frontend.future_samples
            self._extend(np.zeros(beyond, np.float32))
        self._pending = self._silent_past()
        return self.rows

    def drop(self) -> None:
        """Forget all that was not shown; what was shown stays past."""
        self._consumed_bytes += sum(map(len, self._raw))
        self._raw.clear()
        self._odd_byte = b""
        self._output = np.zeros(0, np.float32)
        self._future.clear()
        self._pending = self._silent_past()
        self._resampler = self._new_resampler()

    # What is there

    @property
    def window_spec(self) -> AudioWindowSpec:
        """What a window is."""
        return self._window_spec

    @property
    def rows(self) -> int:
        """Frames of speech that are known and not shown."""
        return len(self._future) - self._beyond

    @property
    def missing(self) -> int:
        """Rows that a whole window still wants."""
        return max(0, self._window_spec.future_rows - len(self._future))

    @property
    def output_samples(self) -> int:
        """Samples of sound that are there for `take`."""
        return len(self._output)

    @property
    def consumed_bytes(self) -> int:
        """Bytes of `push_pcm` that wait no more: taken in, or dropped."""
        return self._consumed_bytes

    @property
    def waiting(self) -> bool:
        """Whether there is any sound that was not shown."""
        begun = self._resampler.has_input or self.rows > 0
        return bool(self._raw) or begun or len(self._output) > 0

    # Windows out

    def window(self, index: int, frames: int, *, rest: bool = False) -> Window:
        """The next window, for ``frames`` new frames; rows that are not known are silence.

        With ``rest`` its new frames are silent, and what is to come comes after them.
        """
        return self.planned(index, frames, rest=rest)()

    def planned(self, index: int, frames: int, *, rest: bool = False) -> Callable[[], Window]:
        """The `window` that would come now, to be computed later, on any thread.

        Nothing that happens meanwhile changes it. Raises ``ValueError`` for ``frames`` beyond the
        hop.
        """
        spec = self._window_spec
        if not 1 <= frames <= spec.hop:
            raise ValueError(f"frames = {frames}, expected 1 to {spec.hop}")
        before = self._silent_rows(frames if rest else 0)
        future = [*before, *self._future][: spec.future_rows]
        silent = self._silent_rows(spec.future_rows - len(future))
        rows = [*self._past, *future, *silent]
        return lambda: Window(index, np.stack([row() for row in rows]), frames)

    def take_windows(self, first: int = 0) -> list[Window]:
        """All whole windows that are there, numbered from ``first``; they are shown, silently."""
        windows: list[Window] = []
        while not self.missing and self.rows:
            frames = min(self._window_spec.hop, self.rows)
            windows.append(self.window(first + len(windows), frames))
            self.skip(frames)
        return windows

    def take(self, frames: int) -> Floats:
        """The sound of the next ``frames`` frames of speech, which now are shown.

        The last frames of a speech have the sound that is left: a sample more or less.
        """
        self.skip(frames)
        ended = self._finished and not self.rows
        count = len(self._output) if ended else frames * self._output_rate // FPS
        pcm, self._output = self._output[:count], self._output[count:]
        return pcm

    def skip(self, frames: int) -> None:
        """``frames`` more frames of speech are past, and their sound is not of interest."""
        self._past = self._latest([*self._past, *self._future[:frames]])
        del self._future[:frames]

    def rest(self, frames: int) -> None:
        """``frames`` of silence are shown; what is to come still is."""
        self._past = self._latest([*self._past, *self._silent_rows(frames)])

    # State

    def state(self) -> bytes:
        """All that was taken in and not shown, to `restore` elsewhere; 100 KB with log-mel rows.

        Bytes that wait to be taken in are not in it.
        """
        recent, places = self._resampler.state()
        arrays: dict[str, NDArray[Any]] = {
            "rows": self._stacked([*self._past, *self._future]),
            "pending": self._pending,
            "recent": recent,
            "output": np.rint(self._output.clip(-1, 1) * _PCM_SCALE).astype(np.int16),
        }
        facts: dict[str, object] = {
            "places": places,
            "consumed_bytes": self._consumed_bytes,
            "odd_byte": list(self._odd_byte),
            "samples": self._samples,
            "beyond": self._beyond,
            "finished": self._finished,
        }
        return pack(arrays, facts)

    @classmethod
    def restore(
        cls,
        state: bytes,
        window_spec: AudioWindowSpec = LOG_MEL,
        rate: int = 0,
        *,
        output_rate: int = 0,
    ) -> SpeechStream:
        """The stream that gave ``state``; bytes that waited are to be pushed again.

        Raises ``ValueError`` for other bytes.
        """
        arrays, facts = unpack(state)
        known: dict[str, Any] = facts
        new = cls(window_spec, rate, output_rate=output_rate)
        rows: _Rows = [_known(row) for row in arrays["rows"].astype(np.float32)]
        new._past, new._future = rows[: window_spec.past], rows[window_spec.past :]
        new._pending = arrays["pending"].astype(np.float32)
        new._output = arrays["output"].astype(np.float32) / _PCM_SCALE
        new._consumed_bytes, new._odd_byte = known["consumed_bytes"], bytes(known["odd_byte"])
        new._samples, new._beyond = known["samples"], known["beyond"]
        new._finished = known["finished"]
        if rate:
            recent = arrays["recent"].astype(np.int16)
            new._take_in(*new._resampler.restore(recent, known["places"]))
        return new

    def _stacked(self, rows: _Rows) -> NDArray[np.generic]:
        """(len(rows), ...) in the precision in which they are kept."""
        frontend = self._window_spec.frontend
        shape = (len(rows), *frontend.row_shape)
        return np.array([row() for row in rows], dtype=frontend.kept_as).reshape(shape)

    def _new_resampler(self) -> Resampler:
        return Resampler(self._rate, (SAMPLE_RATE, self._output_rate) if self._rate else ())

    def _feed(self, pcm: NDArray[np.int16], *, last: bool) -> None:
        self._take_in(*self._resampler.feed(pcm, last=last))

    def _take_in(self, samples: Floats, output: Floats) -> None:
        self._output = np.concatenate([self._output, output])
        self._extend(samples)

    def _extend(self, samples: Floats) -> None:
        samples = np.concatenate([self._pending, samples]).astype(np.float32, copy=False)
        frontend = self._window_spec.frontend
        start, count = 0, samples_per_row(frontend)
        while start + count <= len(samples):
            self._future.append(_Row(frontend, samples[start : start + count]))
            start += SAMPLES_PER_FRAME
        self._pending = samples[start:].copy()

    def _latest(self, rows: _Rows) -> _Rows:
        return rows[len(rows) - self._window_spec.past :]

    def _silent_rows(self, count: int) -> _Rows:
        return [self._window_spec.frontend.silence] * count

    def _silent_past(self) -> Floats:
        return np.zeros(self._window_spec.frontend.past_samples, np.float32)


class _Row:
    """One frame's row, computed when it is first wanted: that may take a network's time."""

    def __init__(self, frontend: AudioFrontend, samples: Floats) -> None:
        self._frontend, self._samples = frontend, samples
        self._made: Floats | None = None

    def __call__(self) -> Floats:
        if self._made is None:
            self._made = self._frontend.row(self._samples)
        return self._made


_Rows = list[Callable[[], Floats]]


def _known(row: Floats) -> Callable[[], Floats]:
    return lambda: row
