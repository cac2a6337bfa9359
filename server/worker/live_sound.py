"""What a live session has been told and not yet shown: sound, and when it must be shown.

Knows: PCM of any chunking at the client's rate, its way to the model's and the output's rate, and
the choice between speech, rest and waiting at any moment that the caller names. Pure: the time
is an argument. Does not know networks, pictures, sockets or the broker.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import soxr

from model.audio.live import LiveWindower
from model.audio.windows import HOP
from model.conditioning import FPS, Floats, Window
from server.media.decode import MODEL_RATE
from server.media.fmp4 import SAMPLE_RATE

HOP_S = HOP / FPS
OUTPUT_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

# A fragment of a live session: an interrupt lets at most one go that was made before it.
FRAGMENT_FRAMES = 4
# With idle, a fragment is begun this long before it is to be seen.
_LEAD_S = FRAGMENT_FRAMES / FPS
# Speech that goes on but is late is waited for so long; then it counts as ended.
_WAIT_S = 0.2
_FEED_BYTES = 8192


class LiveSound:
    """The sound of one session at ``rate`` samples a second, 16 bits, little-endian, mono."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._raw: deque[bytes] = deque()
        self._half = b""  # a chunk may end inside a sample
        self._windower = LiveWindower()
        self._output: Floats = np.zeros(0, np.float32)
        self._heard = 0
        self._open()

    def _open(self) -> None:
        self._to_model = soxr.ResampleStream(self._rate, MODEL_RATE, 1, dtype="float32")
        self._to_output = soxr.ResampleStream(self._rate, SAMPLE_RATE, 1, dtype="float32")
        self._flowing = False

    @property
    def heard(self) -> int:
        """Bytes that wait no more: taken into windows, or dropped."""
        return self._heard

    @property
    def waiting(self) -> bool:
        """Whether any sound is queued that was not shown."""
        return bool(self._raw) or self._flowing or len(self._output) > 0 or self._windower.rows > 0

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
            self._heard += len(chunk)
            data = self._half + chunk
            whole = len(data) // 2 * 2
            self._half = data[whole:]
            if whole:
                samples = np.frombuffer(data[:whole], "<i2").astype(np.float32)
                self._feed(samples / np.float32(32768), False)
        return self._windower.rows

    def finish_speech(self) -> int:
        """Nothing follows for now: what the resamplers and the last frame hold comes out.

        Returns the rows that are known. To be called when `fill` left nothing.
        """
        self._half = b""
        if self._flowing:
            self._feed(np.zeros(0, np.float32), True)
            self._open()
        self._windower.end_of_speech()
        return self._windower.rows

    def window(self, index: int, frames: int, *, rest: bool) -> Window:
        """See `LiveWindower.window`."""
        return self._windower.window(index, frames, rest=rest)

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
        self._heard += sum(map(len, self._raw))
        self._raw.clear()
        self._half = b""
        self._output = np.zeros(0, np.float32)
        self._windower.drop()
        self._open()

    def _feed(self, pcm: Floats, last: bool) -> None:
        self._flowing = True
        self._output = np.concatenate(
            [self._output, self._to_output.resample_chunk(pcm, last=last)]
        )
        self._windower.push(self._to_model.resample_chunk(pcm, last=last))


@dataclass(frozen=True)
class Turn:
    """Make a window of ``frames`` frames: of the sound that waits, or of rest."""

    speech: bool
    frames: int


@dataclass(frozen=True)
class Wait:
    """Nothing to make before ``until_s``, or before news when that is ``None``."""

    until_s: float | None


class Director:
    """Decides what comes next; times are seconds on one clock of the caller's.

    With ``idle`` the video goes on in real time, at most `HOP_S` ahead of it. Without, speech is
    made as it comes, and after an interrupt one window lets the face settle.
    """

    def __init__(self, sound: LiveSound, idle: bool, now_s: float) -> None:
        self._sound = sound
        self._idle = idle
        self._seen_s = now_s  # when the next frame is to be seen
        self._news_s = now_s
        self._speaking = self._settle = self._ended = False

    @property
    def due_s(self) -> float:
        """When the next frame is to be seen; in real time, not before."""
        return self._seen_s

    @property
    def over(self) -> bool:
        """Whether all sound that will ever come was shown."""
        return self._ended and not self._sound.waiting

    @property
    def begin_s(self) -> float:
        """When the next fragment may be begun."""
        return self._seen_s - _LEAD_S if self._idle else 0.0

    def heard(self, pcm: bytes, now_s: float) -> None:
        self._sound.push(pcm)
        self._news_s = now_s

    def interrupted(self) -> None:
        self._sound.drop()
        self._settle = self._speaking and not self._idle

    def end(self) -> None:
        self._ended = True

    def shown(self, turn: Turn, frames: int, now_s: float) -> None:
        """``frames`` of ``turn`` were made; who was late does not hurry afterwards."""
        self._speaking = turn.speech
        self._seen_s = max(self._seen_s, now_s) + frames / FPS

    def gives_way(self, turn: Turn) -> bool:
        """Whether the rest of ``turn`` is not wanted: speech is there whole."""
        if turn.speech:
            return False
        self._sound.fill()
        return self._sound.whole

    def next(self, now_s: float) -> Turn | Wait | None:
        """What to do now; ``None`` when all is said."""
        if now_s < self.begin_s:
            return Wait(self.begin_s)
        rows = self._sound.fill()
        if self._sound.whole:
            return Turn(True, HOP)
        if self._ended:
            rows = self._sound.finish_speech()
            if rows:
                return Turn(True, min(HOP, rows))
            return self._settling()
        if not self._idle:
            return self._settling() or Wait(None)
        return self._among_the_living(now_s)

    def _settling(self) -> Turn | None:
        if not self._settle:
            return None
        self._settle = False
        return Turn(False, HOP)

    def _among_the_living(self, now_s: float) -> Turn | Wait:
        """Speech that is not whole: late, just beginning, at its end, or none at all."""
        if not self._sound.waiting:
            return Turn(False, HOP)
        late_s = self.begin_s + _WAIT_S
        if self._speaking and now_s < late_s:
            return Wait(late_s)
        if self._speaking or now_s - self._news_s >= HOP_S:
            rows = self._sound.finish_speech()
            return Turn(rows > 0, min(HOP, rows) or HOP)
        # It begins: rest until as much is there as a whole window wants.
        return Turn(False, min(HOP, self._sound.missing))
