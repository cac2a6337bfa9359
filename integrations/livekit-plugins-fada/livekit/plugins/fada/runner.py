from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioReceiver,
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    QueueAudioOutput,
)

from .errors import FadaException
from .playout import QUEUE_MS, Playout
from .video_generator import FadaVideoGenerator

MAX_BITRATE = 2_000_000


def video_publish_options(fps: float) -> rtc.TrackPublishOptions:
    """One H.264 layer of a talking face at our rate.

    The presets encode three sizes, and may choose a codec or a rate that gives a black or slow
    picture on a processor without an encoder of its own.
    """
    return rtc.TrackPublishOptions(
        source=rtc.TrackSource.SOURCE_CAMERA,
        video_codec=rtc.VideoCodec.H264,
        simulcast=False,
        video_encoding=rtc.VideoEncoding(max_bitrate=MAX_BITRATE, max_framerate=fps),
    )


class FadaAvatarRunner(AvatarRunner):
    """LiveKit's runner with its own `Playout`, and two more differences.

    It publishes by `video_publish_options`. It reports the end of playback when the last sound has
    been played, not when it was queued. It answers every ``clear_buffer`` by exactly one
    ``playback_finished(interrupted=True)``, also when the speech had not begun or was just over.
    ``wait_for_complete`` raises `FadaException` if the service's session breaks off.
    """

    def __init__(
        self,
        room: rtc.Room,
        *,
        audio_recv: AudioReceiver,
        video_gen: FadaVideoGenerator,
        options: AvatarOptions,
    ) -> None:
        super().__init__(
            room,
            audio_recv=audio_recv,
            video_gen=video_gen,
            options=options,
            _queue_size_ms=QUEUE_MS,
        )
        self._session_id = video_gen.session_id or ""
        self._playout = Playout(self._video_source, self._audio_source, fps=options.video_fps)
        self._receiving = False  # in the middle of a segment
        self._broken = False  # the avatar is gone; what is said counts as interrupted
        self._ending: asyncio.Task[None] | None = None
        self._ending_position = 0.0

    @property
    def session_id(self) -> str:
        """The service's."""
        return self._session_id

    async def aclose(self) -> None:
        self._playout.close()
        await super().aclose()

    async def _publish_track(self) -> None:
        async with self._lock:
            if self._video_publication is not None:
                return
            await self._room_connected_fut
            participant = self._room.local_participant
            audio = rtc.LocalAudioTrack.create_audio_track("avatar_audio", self._audio_source)
            video = rtc.LocalVideoTrack.create_video_track("avatar_video", self._video_source)
            self._audio_publication = await participant.publish_track(
                audio, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
            )
            self._video_publication = await participant.publish_track(
                video, video_publish_options(self._options.video_fps)
            )
            # The first words are for somebody.
            await self._audio_publication.wait_for_subscription()

    async def _read_audio(self) -> None:
        async for frame in self._audio_recv:
            self._receiving = isinstance(frame, rtc.AudioFrame)
            self._audio_playing |= self._receiving
            if not self._broken:
                await self._video_gen.push_audio(frame)
            elif not self._receiving:
                self._audio_playing = False
                self._finished(0.0, interrupted=True)

    async def _forward_video(self) -> None:
        try:
            async for frame in self._video_gen:
                if isinstance(frame, AudioSegmentEnd):
                    self._end_segment()
                    continue
                if self._video_publication is None:
                    await self._publish_track()
                await self._forward(frame)
        except FadaException:
            self._broken = True
            if self._audio_playing and not self._receiving:  # else its end is answered
                self._audio_playing = False
                self._finished(self._playback_position, interrupted=True)
            raise

    async def _forward(self, frame: rtc.VideoFrame | rtc.AudioFrame) -> None:
        if await self._playout.push(frame) and isinstance(frame, rtc.AudioFrame):
            if self._playback_position == 0.0:
                self._notify(self._audio_recv.notify_playback_started())
            self._playback_position += frame.duration

    def _end_segment(self) -> None:
        """Report the end as soon as what is queued has been played."""
        self._audio_playing = False
        position, self._playback_position = self._playback_position, 0.0
        left_s = self._playout.queued_sound_s

        async def report() -> None:
            await asyncio.sleep(left_s)
            self._ending = None
            self._finished(position, interrupted=False)

        self._ending_position = position
        self._ending = self._kept(report())

    def _on_clear_buffer(self) -> None:
        position = self._playback_position
        if self._ending is not None:
            self._ending.cancel()
            self._ending, position = None, self._ending_position
        played_s = max(0.0, position - self._playout.queued_sound_s)
        self._audio_playing, self._playback_position = False, 0.0
        self._video_gen.clear_buffer()
        self._playout.clear()
        self._finished(played_s, interrupted=True)

    def _finished(self, position: float, *, interrupted: bool) -> None:
        self._notify(self._audio_recv.notify_playback_finished(position, interrupted))

    def _notify(self, notification: Coroutine[Any, Any, None] | None) -> None:
        """A receiver may notify at once or later; the video never waits for it."""
        if notification is not None:
            self._kept(notification)

    def _kept(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class LocalAudioOutput(QueueAudioOutput):
    """The agent's sound for a runner in the same process.

    As over the room, only speech that is under way can be cleared: each clear gets an answer, and
    an answer to nothing would be counted for the speech that follows.
    """

    def __init__(self, *, sample_rate: int) -> None:
        super().__init__(sample_rate=sample_rate, wait_playback_start=True)

    def clear_buffer(self) -> None:
        if self._pending_playback_count:
            super().clear_buffer()
