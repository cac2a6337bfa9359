"""Pipecat's service: frames of a pipeline in, frames with the avatar's picture out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from fada_client import ConnectionLost, FadaError
from fada_client.wire import Media
from pipecat.audio.resamplers.base_audio_resampler import BaseAudioResampler
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    FunctionCallsStartedFrame,
    InterruptionFrame,
    OutputImageRawFrame,
    ServiceUpdateSettingsFrame,
    StartFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.types import NOT_GIVEN, NotGiven

from pipecat_fada.playout import PlayoutQueue, SoundSlice
from pipecat_fada.session import AvatarSession, FaceState, Picture

_INHERITED = {one.name for one in fields(ServiceSettings)}
_FPS = 25  # of every session
_RATES = range(8000, 48_001, _FPS)  # what the service takes, with whole samples a picture
_FALLBACK_RATE = 48_000
_STALL_S = 10.0  # without a picture, while the pipeline waits for the last of them

_STATES: dict[type[Frame], FaceState] = {
    UserStartedSpeakingFrame: "listening",
    UserStoppedSpeakingFrame: "thinking",
    FunctionCallsStartedFrame: "thinking",
}
_CATEGORIES = {
    "unauthorized": ErrorCategory.AUTHENTICATION,
    "forbidden": ErrorCategory.AUTHORIZATION,
    "busy": ErrorCategory.RATE_LIMIT,
    "connection_lost": ErrorCategory.CONNECTIVITY,
    "no_worker": ErrorCategory.SERVER,
    "internal_error": ErrorCategory.SERVER,
}


@dataclass
class FadaVideoSettings(ServiceSettings):
    """Options that may change while the pipeline runs; ``None``: the service's default.

    Parameters:
        emotion: ``neutral``, ``happy``, ``sad``, ``angry``, ``surprised``, ``afraid`` or
            ``disgusted``.
        emotion_strength: 0 to 1.
        expressiveness: How far brows, cheeks and smile act, 0 to 2.
        head_motion: How far the head moves, 0 to 2.
        gaze: ``natural`` or ``camera``.
        blink_rate: Times the natural rate, 0 to 3.
    """

    emotion: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    emotion_strength: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    expressiveness: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    head_motion: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    gaze: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    blink_rate: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


_CHANGEABLE = [one.name for one in fields(FadaVideoSettings) if one.name not in _INHERITED]


class FadaVideoService(AIService):
    """Gives a bot a face: put it between the TTS and ``transport.output()``.

    Speech of the TTS comes out as it went in, mono and in slices of 40 ms, each behind the picture
    that belongs to it. Other frames that come between pieces of speech keep their places, so a
    `TTSStoppedFrame` comes when the avatar has finished. In silence there are pictures
    alone, in real time. An interruption drops what was not shown. Pictures are
    `OutputImageRawFrame` with ``sync_with_audio``: the transport's ``video_out_is_live`` must be
    off.

    Errors are pushed. Without a session, the service cannot be used (``is_usable``), and speech
    passes through: the bot goes on with its voice alone.
    """

    Settings = FadaVideoSettings
    _settings: FadaVideoSettings

    def __init__(
        self,
        *,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        avatar_id: str | None = None,
        portrait: Media | None = None,
        options: Mapping[str, Any] | None = None,
        connect_timeout_s: float = 10.0,
        settings: FadaVideoSettings | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the service; it connects in `setup`.

        Args:
            url: Of the FADA service.
            api_key: One of the service's keys, if it asks for one.
            avatar_id: An avatar that was made before (``POST /avatars``).
            portrait: Instead of ``avatar_id``: a picture of at most 1 MB; path, bytes or file.
            options: Options of the animation that stay, as ``size``, ``framing`` or ``seed``.
            connect_timeout_s: How long the service may take to begin the session.
            settings: Options that may change.
            **kwargs: For `AIService`.

        Raises:
            ValueError: Unless exactly one of ``avatar_id`` and ``portrait`` is given.
        """
        if (avatar_id is None) == (portrait is None):
            raise ValueError("expected either avatar_id or portrait")
        known = FadaVideoSettings(
            model=None,
            emotion=None,
            emotion_strength=None,
            expressiveness=None,
            head_motion=None,
            gaze=None,
            blink_rate=None,
        )
        if settings is not None:
            known.apply_update(settings)
        super().__init__(settings=known, **kwargs)
        self._url, self._api_key, self._timeout_s = url, api_key, connect_timeout_s
        self._avatar_id, self._portrait = avatar_id, portrait
        self._options = dict(options or {})
        self._session: AvatarSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._resampler: BaseAudioResampler | None = None
        self._resampled_rate = 0  # of the sound that `_resampler` takes
        self._due_s = 0.0  # when the next picture of rest is to be shown
        self._to_play, self._drained = asyncio.Event(), asyncio.Event()

    def can_generate_metrics(self) -> bool:
        """TTFB: from a reply's first sound to its first picture."""
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Connect, while the pipeline's other processors set up as well."""
        await super().setup(setup)
        rate = setup.audio_out_sample_rate
        self._sample_rate = rate if rate in _RATES else _FALLBACK_RATE
        self._queue = PlayoutQueue(self._sample_rate // _FPS * 2)
        try:
            self._session = await AvatarSession.connect(
                self._url,
                self._api_key,
                queue=self._queue,
                came=self._to_play,
                avatar_id=self._avatar_id,
                portrait=self._portrait,
                sample_rate=self._sample_rate,
                options={**self._options, **self._changeable},
                timeout_s=self._timeout_s,
            )
        except (FadaError, OSError) as error:
            await self._report(error, "no session")
            return
        self._tasks.append(self.create_task(self._run(self._session)))

    async def stop(self, frame: EndFrame) -> None:
        """Wait until all speech was shown, then leave the session."""
        await super().stop(frame)
        await self._end_reply()
        await self._wait_until_drained()
        await self._teardown()

    async def cancel(self, frame: CancelFrame) -> None:
        """Leave the session at once."""
        await super().cancel(frame)
        await self._teardown()

    async def cleanup(self) -> None:
        """Leave the session if that has not happened."""
        await super().cleanup()  # type: ignore[no-untyped-call]
        await self._teardown()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take speech in, keep frames in their order; see the class."""
        await super().process_frame(frame, direction)
        state = _STATES.get(type(frame))
        if state is not None:
            self._set_state(state)
        downstream = direction is FrameDirection.DOWNSTREAM
        if isinstance(frame, StartFrame):
            await self.push_frame(frame, direction)
            self._tasks.append(self.create_task(self._play()))
        elif isinstance(frame, InterruptionFrame):
            await self._interrupt()
            await self.push_frame(frame, direction)
        elif not downstream or isinstance(frame, SystemFrame | EndFrame):
            await self.push_frame(frame, direction)
        elif isinstance(frame, TTSAudioRawFrame):
            await self._add_sound(frame)
        elif isinstance(frame, ServiceUpdateSettingsFrame) and self._is_ours(frame):
            assert isinstance(frame.delta, FadaVideoSettings)
            await self._update_settings(frame.delta)
        else:
            if isinstance(frame, TTSStoppedFrame):
                await self._end_reply()
            self._queue.add_frame(frame)
            self._wake()

    # In

    async def _add_sound(self, frame: TTSAudioRawFrame) -> None:
        now_s = time.time()
        if frame.sample_rate != self._resampled_rate:
            await self._flush_resampler(frame, now_s)
            self._resampled_rate = frame.sample_rate
            if frame.sample_rate != self._sample_rate:
                self._resampler = create_stream_resampler(clear_after_secs=None)
        pcm = _mono(frame)
        if self._resampler is not None:
            pcm = await self._resampler.resample(pcm, frame.sample_rate, self._sample_rate)
        self._queue.add_sound(pcm, frame, now_s)
        self._last_sound = frame
        self._wake()

    async def _end_reply(self) -> None:
        if self._resampled_rate:
            await self._flush_resampler(self._last_sound, time.time())
        self._queue.end_reply()
        self._wake()

    async def _flush_resampler(self, frame: TTSAudioRawFrame, now_s: float) -> None:
        """What the resampler still holds is of ``frame``'s speech; it is as new afterwards."""
        resampler, self._resampler, self._resampled_rate = self._resampler, None, 0
        if resampler is not None and (rest := await resampler.flush()):
            self._queue.add_sound(rest, frame, now_s)

    async def _interrupt(self) -> None:
        held = self._queue.drop()
        if not self._queue.speaking:
            self._resampler, self._resampled_rate = None, 0
        if held and self._session is not None:
            self._session.interrupt()
            self._due_s = 0.0  # the face settles as soon as its pictures come
        self._wake()

    async def _update_settings(self, delta: ServiceSettings) -> dict[str, Any]:
        changed = await super()._update_settings(delta)
        options = {name: v for name, v in self._changeable.items() if name in changed}
        if self._session is not None and options:
            self._session.update(options)
        return changed

    @property
    def _changeable(self) -> dict[str, Any]:
        now = self._settings.given_fields()
        return {name: now[name] for name in _CHANGEABLE if now[name] is not None}

    def _is_ours(self, frame: ServiceUpdateSettingsFrame[Any]) -> bool:
        return isinstance(frame.delta, FadaVideoSettings) and frame.service in (None, self)

    def _set_state(self, state: FaceState) -> None:
        if self._session is not None:
            self._session.set_state(state)

    def _wake(self) -> None:
        self._to_play.set()
        if self._session is not None:
            self._session.wake()

    # Out

    async def _play(self) -> None:
        """The only one that pushes frames of the queue and pictures, so their order is theirs."""
        while True:
            wait_s: float | None = None
            if (frame := self._queue.take_frame()) is not None:
                await self._push_in_turn(frame)
                continue
            session = self._session
            if session is None:
                if (sound := self._queue.take_unseen()) is not None:
                    await self._push_sound(sound)
                    continue
            elif session.pictures:
                wait_s = self._wait_s(session.pictures[0])
                if wait_s <= 0:
                    await self._show(session, session.pictures.popleft())
                    continue
            if self._queue.empty:
                self._drained.set()
            self._to_play.clear()
            try:
                await asyncio.wait_for(self._to_play.wait(), wait_s)
            except TimeoutError:
                continue

    def _wait_s(self, picture: Picture) -> float:
        """Pictures of speech go out as they come: the transport plays them with their sound."""
        return 0.0 if picture.speech else self._due_s - time.monotonic()

    async def _show(self, session: AvatarSession, picture: Picture) -> None:
        self._due_s = max(self._due_s, time.monotonic()) + 1 / session.fps
        sound = self._queue.take_shown() if picture.speech else None
        if sound is not None and sound.began_s is not None:
            await self.start_ttfb_metrics(start_time=sound.began_s)
            await self.stop_ttfb_metrics()
        image = OutputImageRawFrame(picture.rgb, session.size, "RGB")
        image.sync_with_audio = True
        if sound is not None and sound.source is not None:
            image.transport_destination = sound.source.transport_destination
            image.interruptible = sound.interruptible
        await self.push_frame(image)
        if sound is not None:
            await self._push_sound(sound)
        session.wake()

    async def _push_sound(self, sound: SoundSlice) -> None:
        if sound.source is None:
            return
        frame = TTSAudioRawFrame(sound.pcm, self._sample_rate, 1, sound.source.context_id)
        frame.transport_destination = sound.source.transport_destination
        frame.interruptible = sound.interruptible
        await self.push_frame(frame)

    async def _push_in_turn(self, frame: Frame) -> None:
        if isinstance(frame, TTSStoppedFrame):
            self._set_state("idle")
        await self.push_frame(frame)

    async def _wait_until_drained(self) -> None:
        while not self._queue.empty:
            self._drained.clear()
            self._to_play.set()
            before_s = self._due_s
            try:
                await asyncio.wait_for(self._drained.wait(), _STALL_S)
            except TimeoutError:
                if self._due_s == before_s:
                    await self._lose(ConnectionLost(f"no picture came for {_STALL_S:g} s"))

    # The session's end

    async def _run(self, session: AvatarSession) -> None:
        try:
            await session.run()
        except* FadaError as errors:
            await self._lose(_first(errors))
        except* Exception as errors:
            await self._lose(FadaError(f"{_first(errors)!r}"))

    async def _lose(self, error: FadaError) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        self._to_play.set()
        await self._report(error, "the session broke off")
        await session.close()

    async def _report(self, error: FadaError | OSError, what: str) -> None:
        code = f" ({error.code})" if isinstance(error, FadaError) else ""
        await self.push_error(
            f"FADA at {self._url}: {what}: {error}{code}. The bot goes on with its voice alone.",
            exception=error,
            force_treat_as_permanent=True,
        )

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        if not isinstance(exception, FadaError):
            return ErrorCategory.APPLICATION if isinstance(exception, OSError) else None
        return _CATEGORIES.get(exception.code, ErrorCategory.INVALID_REQUEST)

    async def _teardown(self) -> None:
        """Idempotent: `stop`, `cancel` and `cleanup` all come here."""
        tasks, self._tasks = self._tasks, []
        session, self._session = self._session, None
        for task in tasks:
            await self.cancel_task(task)
        if session is not None:
            await session.close()


def _mono(frame: TTSAudioRawFrame) -> bytes:
    if frame.num_channels == 1:
        return frame.audio
    samples = np.frombuffer(frame.audio, "<i2").reshape(-1, frame.num_channels)
    return bytes(np.rint(samples.mean(axis=1)).astype("<i2").tobytes())


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    inner = errors.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
