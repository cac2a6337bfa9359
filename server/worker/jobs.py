"""What a job of each kind does, from its claim to its ending."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from media.decode import DecodedSpeech
from media.fmp4 import SAMPLE_RATE
from model.types import FPS, Floats, Reference
from server import metrics
from server.api.protocol import AvatarView, FaceView, MarksView
from server.broker import messages
from server.broker.consumer import START
from server.broker.leases import Claim
from server.broker.redis import BROKER_LOST
from server.errors import ServiceError
from server.tasks import cancel_and_wait
from server.worker import inspector
from server.worker.backpressure import (
    AHEAD,
    LIVE_AHEAD,
    READ_TIMEOUT_S,
    Backpressure,
    JobAborted,
    ReaderGone,
)
from server.worker.checkpoint import Inbox, InboxPosition, Snapshot, pack_saved, unpack_saved
from server.worker.kept import KeptVideo
from server.worker.resources import WorkerResources
from server.worker.session import (
    Event,
    SpeechInterrupted,
    VideoFragment,
    VideoSession,
    VideoStarted,
)
from server.worker.speech import FileSpeech, LiveSpeech

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

_MAX_TRIES = 2  # beside others, then alone
_MAX_LATE = 100  # on an overloaded machine workers are late through no fault of the job's
_CAPACITY_POLL_S = 0.05
_READER_POLL_S = 1.0
_REPUBLISH_S = 1.0  # without an answer of the reader
_READER_MISSES = 5  # after a stall of the broker, a reader needs time to show itself


async def run_job(
    resources: WorkerResources, claim: Claim
) -> messages.AvatarCreated | messages.Verified | messages.JobDone:
    """The whole job, or what another worker left of it.

    Raises `ServiceError` for input that cannot be used, and `JobAborted` when its reader stopped,
    or the job has ended or belongs to another worker.
    """
    if claim.attempts > _MAX_TRIES:
        raise ServiceError("internal_error", f"{_MAX_TRIES} workers ended while they did this job")
    if claim.suspected_poison and claim.job_id not in resources.quarantine:
        raise ServiceError(
            "internal_error", "a worker ended while it did this job, and none was free to try again"
        )
    if claim.lease_timeouts > _MAX_LATE:
        raise ServiceError("internal_error", f"workers were held up {_MAX_LATE} times by the job")
    if isinstance(claim.request, messages.AnimateRequest):
        return await AnimationJob(resources, claim).make(claim.request)
    if isinstance(claim.request, messages.LiveRequest):
        return await LiveJob(resources, claim).make(claim.request)
    if isinstance(claim.request, messages.VerifyRequest):
        return await _verify(resources, claim.job_id)
    return await _make_avatar(resources, claim.job_id, claim.request)


async def _verify(resources: WorkerResources, job_id: str) -> messages.Verified:
    video = await resources.part(job_id, "video")
    marks = await asyncio.to_thread(inspector.inspect, video)
    return messages.Verified(marks=MarksView.model_validate(marks))


async def _make_avatar(
    resources: WorkerResources, job_id: str, request: messages.AvatarRequest
) -> messages.AvatarCreated:
    reference = await resources.reference(job_id, None, resources.batcher(request.model).pipeline)
    avatar = AvatarView(
        avatar_id=request.avatar_id,
        width=reference.width,
        height=reference.height,
        face=FaceView(box=reference.face_box, confidence=reference.face_confidence),
    )
    await resources.consumer.save_avatar(avatar, reference.to_bytes(), request.owner)
    return messages.AvatarCreated(avatar=avatar)


class _VideoJob:
    """Runs a session, publishes its events and passes its readers' commands on."""

    def __init__(self, resources: WorkerResources, claim: Claim, ahead: int) -> None:
        self._resources, self._claim = resources, claim
        # Of this claim alone: the worker may claim a job again that it is just giving up.
        self._name = f"{claim.job_id}/{claim.token}"
        self._published = claim.events
        self._republish: Callable[[], Awaitable[bool]] | None = None
        self._kept: KeptVideo | None = None
        self._saved: Snapshot | None = None
        self._position = InboxPosition(START, 0, -1)
        self._backpressure = Backpressure(ahead, READ_TIMEOUT_S)
        if claim.snapshot is not None:
            self._saved, self._position = unpack_saved(claim.snapshot)
            self._backpressure.published(self._saved.video.sequence - 1)
            self._backpressure.read(self._position.read)
        self._inbox = Inbox(self._position.entry, self._position.edge)
        self._commands = resources.consumer.commands(claim.job_id, self._position.entry)

    async def _while_read(self, job: Coroutine[Any, Any, messages.JobDone]) -> messages.JobDone:
        """Do the job, apply its readers' commands meanwhile, and end it when they are gone."""
        main = asyncio.create_task(job)
        others = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch_reader())]
        try:
            done, _ = await asyncio.wait({main, *others}, return_when=asyncio.FIRST_COMPLETED)
            if main not in done:
                done.pop().result()  # they end by an error only
            return await main
        finally:
            await cancel_and_wait([main, *others])

    async def _watch_reader(self) -> None:
        """Raises `ReaderGone` once the only possible reader has been gone for some seconds.

        A session that waits for its client to speak would otherwise wait for ever.
        """
        missed = 0
        while missed < _READER_MISSES:
            await asyncio.sleep(_READER_POLL_S)
            with contextlib.suppress(*BROKER_LOST):
                missed = 0 if await self._resources.consumer.has_reader(self._claim) else missed + 1
        raise ReaderGone("the process that asked for it is gone")

    async def _listen(self) -> None:
        async for commands in self._commands:
            self._receive(commands)

    def _receive(self, commands: list[tuple[str, messages.AnyCommand]]) -> None:
        for entry, command in commands:
            sound = len(command.data) if isinstance(command, messages.AudioChunk) else 0
            self._inbox.receive(entry, sound)
            if isinstance(command, messages.Ack):
                self._backpressure.read(command.index)
            else:
                self._apply(command)

    def _apply(self, command: messages.LiveCommand) -> None:
        """A video of a file takes no commands."""

    async def _run(self, session: VideoSession) -> messages.JobDone:
        """Publish all that the session makes, no faster than it is read."""
        if self._saved is not None and not self._saved.closed:
            await self._wait_for_turn()
        async with contextlib.aclosing(session):
            async for event, snapshot in session:
                began_s = time.monotonic()
                await self._publish(event, snapshot)
                if isinstance(event, VideoFragment):
                    self._measure(session, event, time.monotonic() - began_s)
                if not snapshot.closed:
                    await self._wait_for_turn()
        return messages.JobDone(frames=session.frames, duration_s=session.duration_s)

    async def _wait_for_turn(self) -> None:
        """Return when the session may go on."""
        try:
            async with asyncio.timeout(_REPUBLISH_S):
                await self._backpressure.wait_for_reader()
        except TimeoutError:
            if self._republish is not None:  # a fail-over may have lost the event
                await self._republish()
            await self._backpressure.wait_for_reader()

    def _measure(self, session: VideoSession, fragment: VideoFragment, publish_s: float) -> None:
        """Record what a fragment took, apart from waiting."""
        if fragment.draw_s:  # motion is not drawn
            metrics.stage("draw", fragment.draw_s)
            metrics.stage("encode", fragment.encode_s)

    async def _publish(self, event: Event, snapshot: Snapshot) -> None:
        """One event with the snapshot after it."""
        message = _message(event)
        if self._kept is not None:
            message = await self._kept.store(message)
        if isinstance(message, messages.JobFragment):
            self._backpressure.published(message.index)
        entry, edge = self._inbox.held(self._consumed_bytes)
        saved = pack_saved(snapshot, InboxPosition(entry, edge, self._backpressure.last_read))
        self._published += 1
        publish = partial(
            self._resources.consumer.publish,
            self._claim,
            self._published,
            message,
            snapshot=saved,
            last_command=entry,
            stored_bytes=0 if self._kept is None else self._kept.stored_bytes,
        )
        with metrics.timed_stage("publish"):
            running = await publish()
        self._republish = publish
        if not running:
            raise JobAborted("it has ended, or another worker has it")
        # Progress clears the job of suspicion: the worker before did not end because of it.
        self._resources.quarantine.discard(self._claim.job_id)
        if isinstance(message, messages.JobFragment):
            metrics.fragment("speech" if message.speech else "idle", message.duration_s)

    @property
    def _consumed_bytes(self) -> int:
        """Bytes of pushed sound that the state includes."""
        return 0


def _message(event: Event) -> messages.Progress:
    if isinstance(event, VideoStarted):
        return messages.Started(
            seed=event.seed,
            width=event.width,
            height=event.height,
            fps=FPS,
            codecs=event.codecs,
            total_s=event.total_s,
            warnings=list(event.warnings),
            data=event.data,
        )
    if isinstance(event, SpeechInterrupted):
        return messages.JobInterrupted(at_s=event.at_s, consumed_bytes=event.consumed_bytes)
    return messages.JobFragment(
        index=event.index,
        first_frame=event.first_frame,
        frames=event.frames,
        start_s=event.first_frame / FPS,
        duration_s=event.frames / FPS,
        speech=event.speech,
        consumed_bytes=event.consumed_bytes,
        data=event.data,
        pcm=b"" if event.pcm is None else _s16le(event.pcm),
    )


def _s16le(samples: Floats) -> bytes:
    return bytes(np.rint(samples.clip(-1, 1) * 32767).astype("<i2"))


class AnimationJob(_VideoJob):
    """The video of a speech that is there whole."""

    def __init__(self, resources: WorkerResources, claim: Claim) -> None:
        super().__init__(resources, claim, AHEAD)

    async def make(self, request: messages.AnimateRequest) -> messages.JobDone:
        """From the uploads, or from the snapshot on."""
        return await self._while_read(self._make(request))

    async def _make(self, request: messages.AnimateRequest) -> messages.JobDone:
        if request.keep:
            self._kept = KeptVideo(self._resources.consumer, self._claim, request)
        deadline_s = math.inf if request.keep else time.monotonic()
        batcher = self._resources.batcher(request.model)
        pipeline = batcher.pipeline
        decoded, reference = await self._inputs(request, pipeline)
        with contextlib.closing(decoded.blocks):
            speech = await asyncio.to_thread(
                FileSpeech.open,
                decoded,
                pipeline.window_spec,
                request.options,
                first_window=0 if self._saved is None else self._saved.state.window_index,
                deadline_s=deadline_s,
            )
            session = VideoSession(
                batcher,
                reference,
                speech,
                seed=request.seed,
                pool=self._resources.pool,
                name=self._name,
                snapshot=self._saved,
                encoding=self._resources.marks.encoding,
            )
            began_s = time.monotonic()
            done = await self._run(session)
        if self._saved is None:
            metrics.real_time_factor(done.duration_s, time.monotonic() - began_s)
        if self._kept is None:
            return done
        return await self._kept.indexed(done, self._resources.marks, self._resources.pool)

    async def _wait_for_turn(self) -> None:
        while not self._resources.capacity.has_spare:  # live sessions need it all
            await asyncio.sleep(_CAPACITY_POLL_S)
        if self._kept is None:
            await super()._wait_for_turn()

    async def _inputs(
        self, request: messages.AnimateRequest, pipeline: AvatarPipeline
    ) -> tuple[DecodedSpeech, Reference]:
        """Both uploads, decoded side by side. Errors of the sound are raised first."""
        resources, job_id = self._resources, self._claim.job_id
        audio = await resources.part(job_id, "audio")
        portrait = asyncio.create_task(resources.reference(job_id, request.avatar_id, pipeline))
        try:
            speech = await asyncio.to_thread(
                resources.sandbox.speech, audio, SAMPLE_RATE, resources.max_audio_s
            )
            try:
                return speech, await portrait
            except BaseException:
                speech.blocks.close()
                raise
        finally:
            await cancel_and_wait([portrait])


class LiveJob(_VideoJob):
    """A live session."""

    def __init__(self, resources: WorkerResources, claim: Claim) -> None:
        super().__init__(resources, claim, LIVE_AHEAD)
        self._speech: LiveSpeech | None = None
        self._work_s = 0.0  # on the current window

    async def make(self, request: messages.LiveRequest) -> messages.JobDone:
        """From the start, or from the snapshot on; what was pushed since comes first."""
        window_spec = self._resources.batcher(request.model).pipeline.window_spec
        pool = self._resources.live_pool
        if self._saved is None:
            speech = LiveSpeech(
                request.sample_rate, window_spec, request.options, idle=request.idle, pool=pool
            )
        else:
            speech = LiveSpeech.restore(
                self._saved.speech,
                request.sample_rate,
                window_spec,
                edge=self._position.edge,
                idle=request.idle,
                pool=pool,
            )
        self._speech = speech
        self._receive(await anext(self._commands))
        return await self._while_read(self._make(request, speech))

    async def _make(self, request: messages.LiveRequest, speech: LiveSpeech) -> messages.JobDone:
        batcher = self._resources.batcher(request.model)
        reference = await self._resources.reference(
            self._claim.job_id, request.avatar_id, batcher.pipeline
        )
        session = VideoSession(
            batcher,
            reference,
            speech,
            seed=request.seed,
            pool=self._resources.live_pool,
            name=self._name,
            snapshot=self._saved,
            pcm=request.pcm,
            encoding=self._resources.marks.encoding,
        )
        return await self._run(session)

    def _apply(self, command: messages.LiveCommand) -> None:
        if self._speech is not None:
            apply(command, self._speech)

    def _measure(self, session: VideoSession, fragment: VideoFragment, publish_s: float) -> None:
        super()._measure(session, fragment, publish_s)
        if fragment.offset == 0:
            self._work_s = 0.0
        self._work_s += fragment.work_s + publish_s
        if fragment.frames and fragment.offset + fragment.frames == fragment.window_frames:
            media_s, capacity = fragment.window_frames / FPS, self._resources.capacity
            capacity.record_window(self._work_s, media_s, late_s=session.late_s)
            metrics.live_load(self._work_s, media_s)
            if session.draw_every > 1:
                metrics.half_rate(media_s)
            # Rather a coarser movement for a while than a delay that stays: until it has caught up.
            behind = session.draw_every > 1 and session.late_s > 0
            session.draw_every = 2 if behind or capacity.must_catch_up(session.late_s) else 1

    @property
    def _consumed_bytes(self) -> int:
        return 0 if self._speech is None else self._speech.consumed_bytes


def apply(command: messages.LiveCommand, speech: LiveSpeech) -> None:
    """Pass a client's command on to its session's speech; returns at once."""
    if isinstance(command, messages.AudioChunk):
        speech.push_audio(command.data)
    elif isinstance(command, messages.Interrupt):
        speech.interrupt()
    elif isinstance(command, messages.Update):
        speech.update(**command.model_dump(exclude={"type"}, exclude_none=True))
    else:
        speech.end()
