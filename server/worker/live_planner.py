"""What a live session shows next: speech, rest, or nothing yet. No clock and no I/O of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.audio.stream import SpeechStream
from model.types import FPS

FRAGMENT_FRAMES = 4  # an interrupt finds at most one fragment of old speech under way
# With idle, a fragment is begun this long before it is shown.
_LEAD_S = FRAGMENT_FRAMES / FPS
# Late speech is waited for this long; then it counts as ended.
_WAIT_S = 0.2
_LONGEST_GAP_S = 5.0


@dataclass(frozen=True)
class NextWindow:
    """Make a window of ``frames`` frames: of the speech that is there, or of rest."""

    speech: bool
    frames: int


@dataclass(frozen=True)
class Wait:
    """Nothing to make before ``until_s``; ``None``: before the client sends something."""

    until_s: float | None


class LivePlanner:
    """Plans over a session's ``stream``; times are seconds on one clock of the caller's.

    With ``idle`` the video goes on in real time, at most a window ahead of it. Speech catches up
    after a stall, as fast as it can be made, so that one stall does not delay all that follows;
    rest does not. Without ``idle``, speech is made as it comes, and one window of rest after an
    interrupt lets the face settle.
    """

    def __init__(self, stream: SpeechStream, idle: bool, now_s: float) -> None:
        self._stream, self._idle = stream, idle
        self._hop, self._hop_s = stream.window_spec.hop, stream.window_spec.hop_s
        self._due_s = now_s
        self._last_audio_s = now_s
        self._speaking = self._settle = self._ended = False

    def state(self, now_s: float) -> dict[str, object]:
        """What to `resume` with elsewhere, on another clock; without the stream."""
        return {
            "ahead_s": self._due_s - now_s,
            "speaking": self._speaking,
            "settle": self._settle,
            "ended": self._ended,
        }

    def resume(self, state: Mapping[str, Any], passed_s: float, now_s: float) -> None:
        """Go on as the planner that gave ``state``, ``passed_s`` seconds ago.

        ``passed_s`` may come from another machine's clock, so it is clipped to sane values.
        """
        self._due_s = now_s + state["ahead_s"] - min(max(0.0, passed_s), _LONGEST_GAP_S)
        self._speaking, self._settle = state["speaking"], state["settle"]
        self._ended = state["ended"]

    @property
    def due_s(self) -> float:
        """When the next frame is shown; in real time, not before."""
        return self._due_s

    def late_s(self, now_s: float) -> float:
        """How far speech is behind real time; 0 or less while it is not."""
        return now_s - self._due_s if self._speaking else 0.0

    @property
    def finished(self) -> bool:
        """Whether the client has ended and all its sound was shown."""
        return self._ended and not self._stream.waiting

    def begin_s(self, *, speech: bool) -> float:
        """When the next fragment may be begun: of speech, up to a window before it is due.

        Rest is begun later, for speech that comes meanwhile goes after it.
        """
        return self._due_s - (self._hop_s if speech else _LEAD_S) if self._idle else 0.0

    def push_audio(self, pcm: bytes, now_s: float) -> None:
        """More sound of the client's came at ``now_s``."""
        self._stream.push_pcm(pcm)
        self._last_audio_s = now_s

    def interrupt(self) -> None:
        """Drop all sound that was not shown."""
        self._stream.drop()
        self._settle = self._speaking and not self._idle

    def end(self) -> None:
        """No more sound will come."""
        self._ended = True

    def shown(self, frames: int, now_s: float, *, speech: bool) -> None:
        """``frames`` of speech or rest were made at ``now_s``."""
        if not (self._speaking and speech):
            self._due_s = max(self._due_s, now_s)
        self._due_s += frames / FPS
        self._speaking = speech

    def yields_to_speech(self, *, speech: bool) -> bool:
        """Whether what is left of a window is rest, and a whole window of speech is there."""
        if speech:
            return False
        self._stream.fill()
        return not self._stream.missing

    def next(self, now_s: float) -> NextWindow | Wait | None:
        """What to do now; ``None`` when all is shown."""
        self._stream.fill()
        whole = not self._stream.missing
        begin_s = self.begin_s(speech=whole)
        if now_s < begin_s:
            return Wait(begin_s)
        if whole:
            return NextWindow(True, self._hop)
        if self._ended:
            rows = self._stream.pause()
            if rows:
                return NextWindow(True, min(self._hop, rows))
            return self._settle_once()
        if not self._idle:
            return self._settle_once() or Wait(None)
        return self._next_in_real_time(now_s)

    def _settle_once(self) -> NextWindow | None:
        if not self._settle:
            return None
        self._settle = False
        return NextWindow(False, self._hop)

    def _next_in_real_time(self, now_s: float) -> NextWindow | Wait:
        """Less than a window of speech: it is late, just beginning, at its end, or not there."""
        if not self._stream.waiting:
            return NextWindow(False, self._hop)
        late_s = self.begin_s(speech=False) + _WAIT_S
        if self._speaking and now_s < late_s:
            return Wait(late_s)
        if self._speaking or now_s - self._last_audio_s >= self._hop_s:
            rows = self._stream.pause()
            return NextWindow(rows > 0, min(self._hop, rows) or self._hop)
        # It begins: rest until a whole window is there.
        return NextWindow(False, min(self._hop, self._stream.missing))
