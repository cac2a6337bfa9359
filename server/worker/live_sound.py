"""What a live session has been told and not yet shown: sound, and when it must be shown."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from media.decode import MODEL_RATE
from media.fmp4 import SAMPLE_RATE
from model.audio.frontend import AudioWindowSpec
from model.audio.live import LiveWindower
from model.types import FPS, Floats, Window, pack, unpack

OUTPUT_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

# A fragment of a live session: an interrupt lets at most one go that was made before it.
FRAGMENT_FRAMES = 4
# With idle, a fragment is begun this long before it is to be seen.
_LEAD_S = FRAGMENT_FRAMES / FPS
# Speech that goes on but is late is waited for so long; then it counts as ended.
_WAIT_S = 0.2
_LONGEST_GAP_S = 5.0
_FEED_BYTES = 8192
# A resampler that begins so long before what is wanted of it has forgotten its beginning.
_SETTLE_S = 0.05
_FULL_SCALE = np.float32(32768)


class Resamplers:
    """One speech's way to the model's and the output's rate, which can be gone on with elsewhere.

    soxr shows nothing of its state. But a resampler that is begun later, at a sample that falls on
    one of the output's, soon gives the same: so what it needs to hear again is kept.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        # Samples after which both outputs begin on a sample again; 48 kHz is a multiple of 16.
        self._period = rate // math.gcd(rate, MODEL_RATE)
        self._targets = (MODEL_RATE, SAMPLE_RATE)
        self._streams = [soxr.ResampleStream(rate, t, 1, dtype="float32") for t in self._targets]
        self._given = [0, 0]
        self._skip = [0, 0]
        self._origin = 0
        self._recent: NDArray[np.int16] = np.zeros(0, np.int16)

    @property
    def flowing(self) -> bool:
        """Whether any sound went in."""
        return self._origin + len(self._recent) > 0

    def feed(self, pcm: NDArray[np.int16], *, last: bool) -> tuple[Floats, Floats]:
        """The samples that are ready at the model's and the output's rate, as floats of ±1."""
        samples = pcm.astype(np.float32) / _FULL_SCALE
        self._recent = np.concatenate([self._recent, pcm])
        outputs = []
        for n, stream in enumerate(self._streams):
            out = stream.resample_chunk(samples, last=last)
            surplus = min(self._skip[n], len(out))
            self._skip[n] -= surplus
            self._given[n] += len(out) - surplus
            outputs.append(out[surplus:])
        self._forget()
        return outputs[0], outputs[1]

    def _forget(self) -> None:
        pairs = zip(self._given, self._targets, strict=True)
        wanted = min(given * self._rate // target for given, target in pairs)
        keep = max(0, wanted - round(_SETTLE_S * self._rate)) // self._period * self._period
        if keep > self._origin:
            self._recent = self._recent[keep - self._origin :]
            self._origin = keep

    def state(self) -> tuple[NDArray[np.int16], list[int]]:
        """A tenth of a second or so of samples, and where they lie."""
        return self._recent, [self._origin, *self._given]

    @classmethod
    def restore(
        cls, rate: int, recent: NDArray[np.int16], places: list[int]
    ) -> tuple[Resamplers, Floats, Floats]:
        """The resamplers that gave that `state`, and samples that these have ready earlier."""
        new = cls(rate)
        new._origin, *new._given = places
        pairs = zip(new._given, new._targets, strict=True)
        new._skip = [given - new._origin * target // rate for given, target in pairs]
        model, output = new.feed(recent, last=False)
        return new, model, output


class LiveSound:
    """The sound of one session at ``rate`` samples a second, 16 bits, little-endian, mono.

    ``window_spec`` says what a window of it is.
    """

    def __init__(self, rate: int, window_spec: AudioWindowSpec) -> None:
        self._rate = rate
        self._raw: deque[bytes] = deque()
        self._half = b""  # a chunk may end inside a sample
        self._windower = LiveWindower(window_spec)
        self._output: Floats = np.zeros(0, np.float32)
        self._consumed_bytes = 0
        self._resamplers = Resamplers(rate)

    def state(self) -> bytes:
        """All that was heard and not shown, without the sound that waits; 100 KB with log-mel."""
        recent, places = self._resamplers.state()
        arrays: dict[str, NDArray[Any]] = {
            **self._windower.state(),
            "recent": recent,
            "output": np.rint(self._output.clip(-1, 1) * 32767).astype(np.int16),
        }
        return pack(
            arrays,
            {"places": places, "consumed_bytes": self._consumed_bytes, "half": list(self._half)},
        )

    @classmethod
    def restore(cls, rate: int, window_spec: AudioWindowSpec, state: bytes) -> LiveSound:
        """The sound that gave ``state``, to be given again what waited."""
        arrays, facts = unpack(state)
        known: dict[str, Any] = facts
        sound = cls(rate, window_spec)
        sound._consumed_bytes, sound._half = known["consumed_bytes"], bytes(known["half"])
        sound._windower = LiveWindower.restore(arrays, window_spec)
        sound._output = arrays["output"].astype(np.float32) / np.float32(32767)
        recent = arrays["recent"].astype(np.int16)
        sound._resamplers, *ready = Resamplers.restore(rate, recent, known["places"])
        sound._take_in(*ready)
        return sound

    @property
    def hop(self) -> int:
        """New frames of a whole window."""
        return self._windower.window_spec.hop

    @property
    def consumed_bytes(self) -> int:
        """Bytes that wait no more: taken into windows, or dropped."""
        return self._consumed_bytes

    @property
    def waiting(self) -> bool:
        """Whether any sound is queued that was not shown."""
        begun = self._resamplers.flowing or self._windower.rows > 0
        return bool(self._raw) or begun or len(self._output) > 0

    @property
    def missing(self) -> int:
        """Frames of sound that a whole window still wants."""
        return self._windower.missing

    @property
    def whole(self) -> bool:
        """Whether a whole window is there, look-ahead included."""
        return self._windower.missing == 0

    def push(self, pcm: bytes) -> None:
        self._raw.append(pcm)

    def fill(self) -> int:
        """Take in what the next window wants, as far as it is there; the rows that are known."""
        while self._windower.missing and self._raw:
            chunk = self._raw.popleft()
            if len(chunk) > _FEED_BYTES:
                self._raw.appendleft(chunk[_FEED_BYTES:])
                chunk = chunk[:_FEED_BYTES]
            self._consumed_bytes += len(chunk)
            data = self._half + chunk
            whole = len(data) // 2 * 2
            self._half = data[whole:]
            if whole:
                self._feed(np.frombuffer(data[:whole], "<i2").astype(np.int16), last=False)
        return self._windower.rows

    def finish_speech(self) -> int:
        """Nothing follows for now: what the resamplers and the last frame hold comes out.

        Returns the rows that are known. To be called when `fill` left nothing.
        """
        self._half = b""
        if self._resamplers.flowing:
            self._feed(np.zeros(0, np.int16), last=True)
            self._resamplers = Resamplers(self._rate)
        self._windower.end_of_speech()
        return self._windower.rows

    def window(self, index: int, frames: int, *, rest: bool) -> Window:
        """See `LiveWindower.window`."""
        return self._windower.window(index, frames, rest=rest)

    def planned(self, index: int, frames: int, *, rest: bool) -> Callable[[], Window]:
        """See `LiveWindower.planned`."""
        return self._windower.planned(index, frames, rest=rest)

    def take(self, frames: int) -> Floats:
        """The sound of the next ``frames`` frames at the output's rate, which now are shown."""
        count = frames * OUTPUT_SAMPLES_PER_FRAME
        pcm, self._output = self._output[:count], self._output[count:]
        self._windower.shown(frames)
        if not self.waiting:  # a sample that rounding left over belongs to no frame
            self._output = self._output[:0]
        return pcm

    def rest(self, frames: int) -> None:
        """``frames`` of silence are shown; what is queued waits on."""
        self._windower.rested(frames)

    def drop(self) -> None:
        """Forget all that is queued."""
        self._consumed_bytes += sum(map(len, self._raw))
        self._raw.clear()
        self._half = b""
        self._output = np.zeros(0, np.float32)
        self._windower.drop()
        self._resamplers = Resamplers(self._rate)

    def _feed(self, pcm: NDArray[np.int16], *, last: bool) -> None:
        self._take_in(*self._resamplers.feed(pcm, last=last))

    def _take_in(self, model: Floats, output: Floats) -> None:
        self._output = np.concatenate([self._output, output])
        self._windower.push(model)


@dataclass(frozen=True)
class NextWindow:
    """Make a window of ``frames`` frames: of the sound that waits, or of rest."""

    speech: bool
    frames: int


@dataclass(frozen=True)
class Wait:
    """Nothing to make before ``until_s``, or before news when that is ``None``."""

    until_s: float | None


class LivePlanner:
    """Decides what comes next; times are seconds on one clock of the caller's.

    With ``idle`` the video goes on in real time, at most a window ahead of it. Speech that was late
    is made up for, as fast as may be, so that a hiccup does not delay all that is said after it;
    late rest is not. Without ``idle``, speech is made as it comes, and after an interrupt one
    window lets the face settle.
    """

    def __init__(self, sound: LiveSound, idle: bool, now_s: float) -> None:
        self._sound = sound
        self._hop, self._hop_s = sound.hop, sound.hop / FPS
        self._idle = idle
        self._seen_s = now_s  # when the next frame is to be seen
        self._last_audio_s = now_s
        self._speaking = self._settle = self._ended = False

    def state(self, now_s: float) -> dict[str, object]:
        """What to `resume` with elsewhere, on another clock; without the sound."""
        return {
            "ahead_s": self._seen_s - now_s,
            "speaking": self._speaking,
            "settle": self._settle,
            "ended": self._ended,
        }

    def resume(self, state: Mapping[str, Any], passed_s: float, now_s: float) -> None:
        """Go on as the director that gave ``state``, ``passed_s`` before ``now_s``.

        ``passed_s`` is by another machine's clock, perhaps, and so believed within bounds.
        """
        self._seen_s = now_s + state["ahead_s"] - min(max(0.0, passed_s), _LONGEST_GAP_S)
        self._speaking, self._settle = state["speaking"], state["settle"]
        self._ended = state["ended"]

    @property
    def due_s(self) -> float:
        """When the next frame is to be seen; in real time, not before."""
        return self._seen_s

    @property
    def over(self) -> bool:
        """Whether all sound that will ever come was shown."""
        return self._ended and not self._sound.waiting

    def begin_s(self, *, speech: bool) -> float:
        """When the next fragment may be begun; of speech that is there, a window before its time.

        Rest waits longer, for what is said meanwhile comes after it.
        """
        return self._seen_s - (self._hop_s if speech else _LEAD_S) if self._idle else 0.0

    def push_audio(self, pcm: bytes, now_s: float) -> None:
        self._sound.push(pcm)
        self._last_audio_s = now_s

    def interrupt(self) -> None:
        self._sound.drop()
        self._settle = self._speaking and not self._idle

    def end(self) -> None:
        self._ended = True

    def shown(self, frames: int, now_s: float, *, speech: bool) -> None:
        """``frames`` of speech or rest are made at ``now_s``."""
        if not (self._speaking and speech):
            self._seen_s = max(self._seen_s, now_s)
        self._seen_s += frames / FPS
        self._speaking = speech

    def gives_way(self, *, speech: bool) -> bool:
        """Whether what is left of a window is not wanted: a whole one of speech is there."""
        if speech:
            return False
        self._sound.fill()
        return self._sound.whole

    def next(self, now_s: float) -> NextWindow | Wait | None:
        """What to do now; ``None`` when all is said."""
        rows = self._sound.fill()
        begin_s = self.begin_s(speech=self._sound.whole)
        if now_s < begin_s:
            return Wait(begin_s)
        if self._sound.whole:
            return NextWindow(True, self._hop)
        if self._ended:
            rows = self._sound.finish_speech()
            if rows:
                return NextWindow(True, min(self._hop, rows))
            return self._settling()
        if not self._idle:
            return self._settling() or Wait(None)
        return self._among_the_living(now_s)

    def _settling(self) -> NextWindow | None:
        if not self._settle:
            return None
        self._settle = False
        return NextWindow(False, self._hop)

    def _among_the_living(self, now_s: float) -> NextWindow | Wait:
        """Speech that is not whole: late, just beginning, at its end, or none at all."""
        if not self._sound.waiting:
            return NextWindow(False, self._hop)
        late_s = self.begin_s(speech=False) + _WAIT_S
        if self._speaking and now_s < late_s:
            return Wait(late_s)
        if self._speaking or now_s - self._last_audio_s >= self._hop_s:
            rows = self._sound.finish_speech()
            return NextWindow(rows > 0, min(self._hop, rows) or self._hop)
        # It begins: rest until as much is there as a whole window wants.
        return NextWindow(False, min(self._hop, self._sound.missing))
