"""Which sound belongs to which picture. Pure: no clock, no I/O.

The service gives back one frame of video of kind ``speech`` for each frame of sound it gets, as
long as it gets whole ones. So sound and pictures are matched by counting, and what is played is
the sound that came in, never a copy that was encoded on the way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_BYTES_PER_SAMPLE = 2


@dataclass(eq=False)
class Segment:
    """One utterance: ``pcm`` is s16le mono; the counts are of video frames."""

    pcm: bytearray = field(default_factory=bytearray)
    ended: bool = False
    cleared: bool = False
    sent: int = 0  # whose sound was given to the service
    drawn: int = 0  # that came back from it
    shown: int = 0  # that were handed on with their sound


@dataclass(frozen=True)
class SoundSlice:
    """The sound of one frame of a segment."""

    segment: Segment
    index: int


class SpeechLedger:
    """The segments that are not over, oldest first."""

    def __init__(self, sample_rate: int, fps: int) -> None:
        """Raises ``ValueError`` for a rate at which a frame is no whole number of samples."""
        if sample_rate % fps:
            raise ValueError(f"sample_rate = {sample_rate}, expected a multiple of {fps}")
        self._frame_bytes = sample_rate // fps * _BYTES_PER_SAMPLE
        self._segments: deque[Segment] = deque()

    def push(self, pcm: bytes) -> None:
        """More sound of the open segment; begins one if there is none."""
        if not self._segments or self._segments[-1].ended:
            self._segments.append(Segment())
        self._segments[-1].pcm += pcm

    @property
    def is_open(self) -> bool:
        """Whether there is a segment that `end` would end."""
        return bool(self._segments) and not self._segments[-1].ended

    def end(self) -> None:
        """The open segment is complete; nothing happens without one."""
        if self.is_open:
            self._segments[-1].ended = True

    def clear(self) -> bool:
        """Forget all segments; returns whether the service still has sound of them to speak."""
        unspoken = any(one.drawn < one.sent for one in self._segments)
        for one in self._segments:
            one.cleared = True
        self._segments.clear()
        return unspoken

    def unsent(self, max_ahead: int) -> bytes:
        """Sound to send now, while at most ``max_ahead`` frames are sent and not shown.

        Whole frames only, so that a pause never falls within one; silence fills the last one of a
        segment.
        """
        room = max_ahead - sum(one.sent - one.shown for one in self._segments)
        for one in self._segments:
            first, size = one.sent, self._frame_bytes
            last = min(self._frames(one), first + room)
            if last > first:
                one.sent = last
                pcm = bytes(one.pcm[first * size : last * size])
                return pcm.ljust((last - first) * size, b"\0")
        return b""

    def drawn(self) -> SoundSlice | None:
        """A frame of speech came: whose it is. ``None`` if no sound is left that it could show."""
        for one in self._segments:
            if one.drawn < one.sent:
                one.drawn += 1
                return SoundSlice(one, one.drawn - 1)
        return None

    def shown(self, piece: SoundSlice) -> bytes:
        """The sound of a frame that is handed on now; less than a frame at a segment's end."""
        piece.segment.shown += 1
        start = piece.index * self._frame_bytes
        return bytes(piece.segment.pcm[start : start + self._frame_bytes])

    def take_finished(self) -> bool:
        """Whether the oldest segment is over, its last sound shown; true once a segment."""
        if not self._segments:
            return False
        one = self._segments[0]
        if not one.ended or one.shown < self._frames(one):
            return False
        self._segments.popleft()
        return True

    def _frames(self, segment: Segment) -> int:
        """Frames that can be sent of what is there."""
        length, size = len(segment.pcm), self._frame_bytes
        return -(-length // size) if segment.ended else length // size
