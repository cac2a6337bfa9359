"""What a job of each kind does, from its claim to its ending."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from media.decode import DecodedSpeech
from media.fmp4 import SAMPLE_RATE
from model.types import Reference
from server import metrics
from server.api.protocol import AvatarView, FaceView
from server.broker import messages
from server.broker.consumer import START, Claim
from server.broker.redis import BROKER_LOST
from server.errors import ServiceError
from server.tasks import cancel_and_wait
from server.worker.backpressure import (
    AHEAD,
    LIVE_AHEAD,
    READ_TIMEOUT_S,
    Backpressure,
    JobAborted,
    ReaderGone,
)
from server.worker.checkpoint import Heard, Inbox, Snapshot, pack_saved, unpack_saved
from server.worker.live import LiveInput, LiveSession
from server.worker.resources import WorkerResources
from server.worker.runner import prepare, run

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

_MAX_TRIES = 2  # beside others, then alone
_MAX_LATE = 100  # on a machine with too much to do, workers are late for nothing of the job's doing
_LOOK_S = 0.05
_READER_LOOK_S = 1.0
_READER_LOOKS = 5  # in vain: after the broker stood still, a reader must have time to show itself


async def do(shop: WorkerResources, claim: Claim) -> messages.AvatarCreated | messages.Done:
    """The whole job, or what another worker left of it.

    Raises `ServiceError` for input that cannot be used, `JobAborted` when nobody reads, or the job
    has ended or is another worker's.
    """
    if claim.attempts > _MAX_TRIES:
        raise ServiceError("internal_error", f"{_MAX_TRIES} workers ended while they did this job")
    if claim.suspected_poison and claim.job_id not in shop.quarantine:
        raise ServiceError(
            "internal_error", "a worker ended while it did this job, and none was free to try again"
        )
    if claim.lease_timeouts > _MAX_LATE:
        raise ServiceError("internal_error", f"workers were held up {_MAX_LATE} times by the job")
    if isinstance(claim.request, messages.AnimateRequest):
        return await AnimationJob(shop, claim).make(claim.request)
    if isinstance(claim.request, messages.LiveRequest):
        return await LiveJob(shop, claim).make(claim.request)
    return await _make_avatar(shop, claim.job_id, claim.request)


async def _make_avatar(
    shop: WorkerResources, job_id: str, request: messages.AvatarRequest
) -> messages.AvatarCreated:
    reference = await shop.reference(job_id, None, shop.batcher(request.model).pipeline)
    avatar = AvatarView(
        avatar_id=request.avatar_id,
        width=reference.width,
        height=reference.height,
        face=FaceView(box=reference.face_box, confidence=reference.face_confidence),
    )
    await shop.work.save_avatar(avatar, reference.to_bytes(), request.owner)
    return messages.AvatarCreated(avatar=avatar)


class _VideoJob:
    """What a job hears, and what it publishes with its snapshots."""

    def __init__(self, shop: WorkerResources, claim: Claim, ahead: int) -> None:
        self._shop, self._claim = shop, claim
        # Of this claim alone: the worker may claim a job again that it is just letting go.
        self._session = f"{claim.job_id}/{claim.token}"
        self._published = claim.events
        self._left: Snapshot | None = None
        self._from = Heard(START, 0, -1)
        self._pace = Backpressure(ahead, READ_TIMEOUT_S)
        if claim.snapshot is not None:
            self._left, self._from = unpack_saved(claim.snapshot)
            self._pace.made(self._left.video.sequence - 1)
            self._pace.read(self._from.read)
        self._inbox = Inbox(self._from.entry, self._from.edge)
        self._commands = shop.work.commands(claim.job_id, self._from.entry)

    async def _listening(self, job: Coroutine[Any, Any, messages.Done]) -> messages.Done:
        """Do the job while what its readers say is heard, and as long as they live."""
        main = asyncio.create_task(job)
        others = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch_reader())]
        try:
            done, _ = await asyncio.wait({main, *others}, return_when=asyncio.FIRST_COMPLETED)
            if main not in done:
                done.pop().result()  # neither ends but by an error
            return await main
        finally:
            await cancel_and_wait([main, *others])

    async def _watch_reader(self) -> None:
        """Raises `ReaderGone` once the only reader there can be has been gone for some seconds.

        A session that waits for its client to speak would else wait for ever.
        """
        missed = 0
        while missed < _READER_LOOKS:
            await asyncio.sleep(_READER_LOOK_S)
            with contextlib.suppress(*BROKER_LOST):
                missed = 0 if await self._shop.work.has_reader(self._claim) else missed + 1
        raise ReaderGone("the process that asked for it is gone")

    async def _listen(self) -> None:
        async for commands in self._commands:
            self._hear_all(commands)

    def _hear_all(self, commands: list[tuple[str, messages.AnyCommand]]) -> None:
        for entry, command in commands:
            sound = len(command.data) if isinstance(command, messages.AudioChunk) else 0
            self._inbox.note(entry, sound)
            if isinstance(command, messages.Ack):
                self._pace.read(command.index)
            else:
                self._hear(command)

    def _hear(self, command: messages.LiveCommand) -> None:
        """A video of a speech that is there whole is told nothing."""

    async def _publish(self, event: messages.Progress, snapshot: Snapshot) -> None:
        """One event with the snapshot after it."""
        if isinstance(event, messages.Fragment):
            self._pace.made(event.index)
        entry, edge = self._inbox.held(self._taken())
        saved = pack_saved(snapshot, Heard(entry, edge, self._pace.last_read))
        self._published += 1
        work = self._shop.work
        with metrics.staged("publish"):
            lives = await work.publish(
                self._claim, self._published, event, snapshot=saved, last_command=entry
            )
        if not lives:
            raise JobAborted("it has ended, or another worker has it")
        self._shop.quarantine.discard(self._claim.job_id)  # it got on: the worker's end was not its
        if isinstance(event, messages.Fragment):
            metrics.fragment("speech" if event.speech else "idle", event.duration_s)

    def _taken(self) -> int:
        """How many bytes of sound the state has taken in."""
        return 0


class AnimationJob(_VideoJob):
    """The video of a speech that is there whole."""

    def __init__(self, shop: WorkerResources, claim: Claim) -> None:
        super().__init__(shop, claim, AHEAD)

    async def make(self, request: messages.AnimateRequest) -> messages.Done:
        """From the uploads, or from the snapshot on."""
        return await self._listening(self._make(request))

    async def _make(self, request: messages.AnimateRequest) -> messages.Done:
        shop = self._shop
        deadline_s = math.inf if request.keep else time.monotonic()
        batcher = shop.batcher(request.model)
        pipeline = batcher.pipeline
        speech, reference = await self._inputs(request, pipeline)

        async def room() -> None:
            while not shop.capacity.spare:  # live sessions need it all
                await asyncio.sleep(_LOOK_S)
            if not request.keep:
                await self._pace.room()

        with contextlib.closing(speech.blocks):
            wishes = (request.options, request.seed, self._left)
            animation = await asyncio.to_thread(prepare, pipeline, reference, speech, *wishes)
            began_s = time.monotonic()
            done = await run(
                animation, self._session, deadline_s, batcher, shop.pool, self._publish, room
            )
        if self._left is None:
            metrics.real_time_factor(done.duration_s, time.monotonic() - began_s)
        return done

    async def _inputs(
        self, request: messages.AnimateRequest, pipeline: AvatarPipeline
    ) -> tuple[DecodedSpeech, Reference]:
        """Both uploads, decoded side by side. What is wrong with the sound is raised first."""
        shop, job_id = self._shop, self._claim.job_id
        audio = await shop.part(job_id, "audio")
        portrait = asyncio.create_task(shop.reference(job_id, request.avatar_id, pipeline))
        try:
            speech = await asyncio.to_thread(
                shop.sandbox.speech, audio, SAMPLE_RATE, shop.max_audio_s
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

    def __init__(self, shop: WorkerResources, claim: Claim) -> None:
        super().__init__(shop, claim, LIVE_AHEAD)
        self._input: LiveInput | None = None

    async def make(self, request: messages.LiveRequest) -> messages.Done:
        """From the start, or from the snapshot on; what was said since is heard first."""
        left, window_spec = self._left, self._shop.batcher(request.model).pipeline.window_spec
        if left is None:
            heard = LiveInput(request, time.monotonic, window_spec)
        else:
            heard = LiveInput.restore(request, time.monotonic, window_spec, left, self._from.edge)
        self._input = heard
        self._hear_all(await anext(self._commands))
        return await self._listening(self._make(request, heard))

    async def _make(self, request: messages.LiveRequest, heard: LiveInput) -> messages.Done:
        shop, job_id = self._shop, self._claim.job_id
        batcher = shop.batcher(request.model)
        pipeline = batcher.pipeline
        reference = await shop.reference(job_id, request.avatar_id, pipeline)
        ways = (self._publish, self._pace.room, shop.live_pool, shop.capacity.made)
        session = LiveSession(pipeline, reference, request, heard, *ways, self._left)
        return await session.run(self._session, batcher)

    def _hear(self, command: messages.LiveCommand) -> None:
        if self._input is not None:
            self._input.hear(command)

    def _taken(self) -> int:
        return 0 if self._input is None else self._input.sound.heard
