from __future__ import annotations

import asyncio

from livekit import rtc

# Sound is given to its source this long before it is heard, and pictures wait as long: no hiccup of
# the event loop is heard.
LEAD_S = 0.08
QUEUE_MS = 200
_TOLERANCE_S = 0.02


class Playout:
    """Shows pictures at an even rate, and lets the sound of each be heard while it is shown.

    A picture that comes late moves all that follow; they never rush. LiveKit's synchronizer would
    show them as they arrive from then on, four at once.
    """

    def __init__(
        self, video_source: rtc.VideoSource, audio_source: rtc.AudioSource, *, fps: float
    ) -> None:
        self._video, self._audio = video_source, audio_source
        self._interval_s = 1 / fps
        self._due_s = 0.0  # when the last picture is shown, on the loop's clock
        self._waiting: set[asyncio.TimerHandle] = set()
        self._clears = 0
        self._closed = False

    @property
    def queued_sound_s(self) -> float:
        """Sound that was pushed and is not heard yet."""
        return self._audio.queued_duration

    async def push(self, frame: rtc.VideoFrame | rtc.AudioFrame) -> bool:
        """A picture, or the sound of the last one; waits until the source wants it.

        ``False`` if `clear` came meanwhile, or `close`: the frame was dropped.
        """
        clears = self._clears
        if isinstance(frame, rtc.VideoFrame):
            await self._push_picture(frame, clears)
        else:
            await self._push_sound(frame)
        if clears == self._clears and not self._closed:
            return True
        if isinstance(frame, rtc.AudioFrame):
            self._audio.clear_queue()
        return False

    def clear(self) -> None:
        """Drop all that is not shown or heard yet."""
        self._clears += 1
        for handle in self._waiting:
            handle.cancel()
        self._waiting.clear()
        self._audio.clear_queue()
        self._due_s = 0.0

    def close(self) -> None:
        """Show nothing more; the sources may be closed."""
        self._closed = True
        self.clear()

    async def _push_picture(self, frame: rtc.VideoFrame, clears: int) -> None:
        loop = asyncio.get_running_loop()
        due_s = max(self._due_s + self._interval_s, loop.time() + LEAD_S)
        await asyncio.sleep(due_s - LEAD_S - loop.time())
        if clears != self._clears or self._closed:
            return
        self._due_s = due_s

        def show() -> None:
            self._waiting.discard(handle)
            self._video.capture_frame(frame)

        handle = loop.call_at(due_s, show)
        self._waiting.add(handle)

    async def _push_sound(self, frame: rtc.AudioFrame) -> None:
        early_s = self._due_s - asyncio.get_running_loop().time() - self.queued_sound_s
        if early_s > _TOLERANCE_S:  # nothing was heard: silence until its picture is shown
            samples = round(early_s * frame.sample_rate)
            silence = bytes(2 * samples * frame.num_channels)
            await self._audio.capture_frame(
                rtc.AudioFrame(silence, frame.sample_rate, frame.num_channels, samples)
            )
        elif early_s < -_TOLERANCE_S:  # it is heard later: the next pictures wait for it
            self._due_s -= early_s
        await self._audio.capture_frame(frame)
