from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

from fada_client import AsyncClient, AsyncStream, FadaError, Fragment, InitSegment, Interrupted
from fada_client.decode import FragmentDecoder
from fada_client.wire import Media
from livekit import rtc
from livekit.agents import utils
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from .errors import FadaException
from .log import logger
from .media import MonoResampler, video_frames
from .speech import SoundSlice, SpeechLedger

FaceState = Literal["listening", "thinking", "idle"]

DEFAULT_SAMPLE_RATE = 24_000
# Sound given to the service ahead of what is shown; the rest waits here, where it is dropped at no
# cost. The service takes up to a minute.
_MAX_AHEAD_S = 4.0
# Pictures of rest that wait longer than this are dropped: a reader that stood still, as until
# somebody subscribes, goes on in the present.
_MAX_REST_S = 0.24  # a fragment lasts 0.16 s


@dataclass(frozen=True)
class _Picture:
    """``sound`` is ``None`` at rest."""

    frame: rtc.VideoFrame
    sound: SoundSlice | None

    @property
    def cleared(self) -> bool:
        return self.sound is not None and self.sound.segment.cleared


class FadaVideoGenerator(VideoGenerator):
    """A live session of the service as LiveKit's `VideoGenerator`.

    Pushed sound is resampled and mixed to mono at ``sample_rate``. Iteration yields, in real time,
    each video frame and, while the avatar speaks, the frame's sound right after it; an
    `AudioSegmentEnd` once for each segment, after its last sound. At rest there is video alone.
    After `clear_buffer` nothing of older segments comes, neither sound, nor picture, nor end.
    Iteration raises `FadaException` when the session breaks off.
    """

    def __init__(
        self,
        client: AsyncClient,
        avatar_id: str | None = None,
        *,
        portrait: Media | None = None,
        sample_rate: int = DEFAULT_SAMPLE_RATE,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """``options`` are those of an animation, as ``size`` or ``framing``.

        The caller owns ``client``. Either ``avatar_id`` or ``portrait`` (at most 1 MB) is needed.
        """
        self._client = client
        self._avatar_id, self._portrait = avatar_id, portrait
        self._sample_rate, self._options = sample_rate, dict(options or {})
        self._stack = AsyncExitStack()
        self._stream: AsyncStream | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._resampler = MonoResampler(sample_rate)
        self._pictures: deque[_Picture] = deque()
        self._to_read, self._to_send = asyncio.Event(), asyncio.Event()
        self._interrupt_due = False  # and not yet sent
        self._interrupting = False  # until the service confirms, its speech is old
        self._state_due: FaceState | None = None
        self._ended = False
        self._error: FadaException | None = None

    async def start(self) -> AvatarOptions:
        """Connect; returns what an `AvatarRunner` needs to know. Raises `FadaException`."""
        try:
            stream = await self._stack.enter_async_context(
                self._client.stream(
                    self._avatar_id,
                    portrait=self._portrait,
                    sample_rate=self._sample_rate,
                    idle=True,
                    **self._options,
                )
            )
        except FadaError as error:
            raise FadaException.of(error) from error
        self._stream, self._fps = stream, stream.ready.fps
        self._speech = SpeechLedger(self._sample_rate, self._fps)
        self._tasks = [
            asyncio.create_task(self._watched(self._receive(stream))),
            asyncio.create_task(self._watched(self._send(stream))),
        ]
        return AvatarOptions(
            video_width=stream.ready.width,
            video_height=stream.ready.height,
            video_fps=self._fps,
            audio_sample_rate=self._sample_rate,
            audio_channels=1,
        )

    @property
    def session_id(self) -> str | None:
        """The service's, once started."""
        return None if self._stream is None else self._stream.ready.session_id

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Never waits for the service. An end without sound before it is swallowed."""
        if isinstance(frame, AudioSegmentEnd):
            if not self._speech.is_open:
                return
            self._speech.push(self._resampler.flush())
            self._speech.end()
            self._to_read.set()  # its sound may all be shown
        else:
            self._speech.push(self._resampler.push(frame))
        self._to_send.set()

    def clear_buffer(self) -> None:
        """Drop what was pushed, here at once and in the service as soon as it hears of it."""
        self._resampler.flush()
        if self._speech.clear() and not self._interrupting:
            self._interrupt_due = self._interrupting = True
            self._to_send.set()
        self._pictures = deque(one for one in self._pictures if not one.cleared)

    def set_state(self, state: FaceState) -> None:
        """How the avatar acts while it does not speak."""
        self._state_due = state
        self._to_send.set()

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        return self._frames()

    async def aclose(self) -> None:
        """End the session; iteration ends as well."""
        await utils.aio.cancel_and_wait(*self._tasks)
        await self._stack.aclose()
        self._ended = True
        self._to_read.set()

    async def _frames(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        while True:
            if self._speech.take_finished():
                yield AudioSegmentEnd()
            elif self._pictures:
                picture = self._pictures.popleft()
                yield picture.frame
                # Cleared meanwhile, its sound is old.
                if picture.sound is not None and not picture.cleared:
                    yield self._sound(picture.sound)
            elif self._error is not None:
                raise self._error
            elif self._ended:
                return
            else:
                self._to_read.clear()
                await self._to_read.wait()

    def _sound(self, piece: SoundSlice) -> rtc.AudioFrame:
        pcm = self._speech.shown(piece)
        self._to_send.set()
        return rtc.AudioFrame(pcm, self._sample_rate, 1, len(pcm) // 2)

    async def _receive(self, stream: AsyncStream) -> None:
        decoder: FragmentDecoder | None = None
        async for event in stream:
            match event:
                case InitSegment(data=data):
                    decoder = FragmentDecoder(data)
                case Fragment(data=data, kind=kind) if decoder is not None:
                    # In a thread: it takes milliseconds, and the loop paces sound.
                    frames = await asyncio.to_thread(video_frames, decoder, data)
                    self._take(frames, speech=kind == "speech")
                case Interrupted():
                    self._interrupting = False
                    self._to_send.set()
        self._ended = True
        self._to_read.set()

    def _take(self, frames: list[rtc.VideoFrame], *, speech: bool) -> None:
        if speech and self._interrupting:
            return
        self._pictures += [
            _Picture(one, self._speech.drawn() if speech else None) for one in frames
        ]
        while len(self._pictures) > _MAX_REST_S * self._fps and self._pictures[0].sound is None:
            self._pictures.popleft()
        self._to_read.set()

    async def _send(self, stream: AsyncStream) -> None:
        """One message at a time, in the order that lets an interrupt drop what went before it."""
        max_ahead = round(_MAX_AHEAD_S * self._fps)
        while True:
            if self._interrupt_due:
                self._interrupt_due = False
                await stream.interrupt()
            elif self._state_due is not None:
                state, self._state_due = self._state_due, None
                await stream.state(state)
            elif not self._interrupting and (pcm := self._speech.unsent(max_ahead)):
                await stream.push_audio(pcm)
            else:
                self._to_send.clear()
                await self._to_send.wait()

    async def _watched(self, work: Any) -> None:
        """An error of the session ends the iteration, after the frames that came before it."""
        try:
            await work
        except FadaError as error:
            logger.error("the avatar's session broke off: %s", error)
            self._error = FadaException.of(error)
            self._to_read.set()
