"""What goes out, in order: sound cut to the avatar's pictures, and frames in their places among it.

The service gives one picture of kind ``speech`` back for each 40 ms of sound, as long as it gets
whole ones. So sound and pictures are matched by counting, and what is played is the sound that came
in, never a copy that was encoded on the way. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipecat.frames.frames import Frame, TTSAudioRawFrame

# A window of the service and its look-ahead: the silence that lets it finish a reply at once,
# where it would wait for more sound.
TAIL_PICTURES = 12


@dataclass(eq=False)
class SoundSlice:
    """The sound of one picture, s16le mono; shorter at a reply's end.

    ``source`` is a frame that it came with; ``None``: silence after a reply, which is not played.
    ``began_s`` is when the reply's sound arrived, if this is its first and nothing was in its way.
    """

    pcm: bytes
    source: TTSAudioRawFrame | None
    began_s: float | None = None
    sent: bool = False

    @property
    def interruptible(self) -> bool:
        """Whether an interruption drops it."""
        return self.source is None or self.source.interruptible


class PlayoutQueue:
    """First in, first out; `unsent` gives sound to the service, `take_shown` takes it out."""

    def __init__(self, slice_bytes: int) -> None:
        """``slice_bytes``: the sound of one picture."""
        self._slice_bytes = slice_bytes
        self._items: deque[SoundSlice | Frame] = deque()
        self._begun = b""  # less than a picture's sound
        self._source: TTSAudioRawFrame | None = None  # of `_begun`
        self._open = False  # a reply began and has not ended
        self._began_s: float | None = None

    def add_sound(self, pcm: bytes, source: TTSAudioRawFrame, now_s: float) -> None:
        """More sound of the reply; begins one if there is none."""
        if not self._open:
            self._open, self._began_s = True, None if self.speaking else now_s
        self._begun, self._source = self._begun + pcm, source
        size = self._slice_bytes
        whole = len(self._begun) // size * size
        for start in range(0, whole, size):
            self._append(self._begun[start : start + size])
        self._begun = self._begun[whole:]

    def end_reply(self) -> None:
        """The reply's sound is complete."""
        if self._begun:
            self._append(self._begun)
        self._begun, self._source, self._open = b"", None, False

    def add_frame(self, frame: Frame) -> None:
        """A frame that goes out after all sound before it."""
        self._items.append(frame)

    def drop(self) -> bool:
        """Forget what an interruption drops; returns whether the service holds some of it."""
        held = any(one.sent and one.interruptible for one in self._slices)
        self._items = deque(item for item in self._items if not item.interruptible)
        if self._source is None or self._source.interruptible:
            self._begun, self._source, self._open = b"", None, False
        if held:  # and drops all that it holds
            for one in self._slices:
                one.sent = False
        return held

    def unsent(self, max_ahead: int) -> bytes:
        """Sound to send now, in whole slices; at most ``max_ahead`` are sent and not shown."""
        room = max_ahead - self._held
        chosen = [one for one in self._slices if not one.sent][: max(0, room)]
        for one in chosen:
            one.sent = True
        return b"".join(one.pcm.ljust(self._slice_bytes, b"\0") for one in chosen)

    def add_tail(self) -> None:
        """Silence after the last reply, once little else is left to be shown."""
        slices = self._slices
        if self._open or not slices or slices[-1].source is None:
            return
        if len(slices) < TAIL_PICTURES:
            silence = bytes(self._slice_bytes)
            self._items += [SoundSlice(silence, None) for _ in range(TAIL_PICTURES)]

    def take_frame(self) -> Frame | None:
        """The next frame, if it is its turn."""
        if not self._items or isinstance(self._items[0], SoundSlice):
            return None
        frame = self._items.popleft()
        assert isinstance(frame, Frame)
        return frame

    def take_shown(self) -> SoundSlice | None:
        """The sound of the picture of speech that goes out now; after all `take_frame` gives."""
        return self._take() if self._slices and self._slices[0].sent else None

    def take_unseen(self) -> SoundSlice | None:
        """The next sound, where no picture will come for it; after all `take_frame` gives."""
        return self._take() if self._items else None

    @property
    def speaking(self) -> bool:
        """Whether there is sound of a reply that did not go out."""
        return bool(self._begun) or any(one.source is not None for one in self._slices)

    @property
    def empty(self) -> bool:
        """Whether all that came in went out."""
        frames = any(isinstance(item, Frame) for item in self._items)
        return not frames and not self.speaking

    @property
    def _slices(self) -> list[SoundSlice]:
        return [item for item in self._items if isinstance(item, SoundSlice)]

    @property
    def _held(self) -> int:
        return sum(one.sent for one in self._slices)

    def _append(self, pcm: bytes) -> None:
        began_s, self._began_s = self._began_s, None
        self._items.append(SoundSlice(pcm, self._source, began_s))

    def _take(self) -> SoundSlice:
        item = self._items.popleft()
        assert isinstance(item, SoundSlice)
        return item
