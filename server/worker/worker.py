"""The worker process: takes jobs from the broker, runs several at once, says how each ended.

Knows: claiming, cancelling, draining, and what an error means to a client. Does not know HTTP,
nor how a video is made (`server.worker.runner`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError as BrokerLost

from model.conditioning import Reference
from model.pipeline import AvatarPipeline
from server.broker import liveness, messages
from server.broker.redis import connect
from server.broker.work import Claim, Limits, Work
from server.errors import ServiceError
from server.media.decode import decode_audio
from server.media.fmp4 import SAMPLE_RATE
from server.protocol import AvatarView, FaceView
from server.settings import Settings
from server.worker.batcher import Batcher
from server.worker.live import LiveInput, LiveSession
from server.worker.loading import load_pipelines, view
from server.worker.pace import AHEAD, LIVE_AHEAD, PATIENCE_S, Pace, Unwanted
from server.worker.portraits import encode_portrait
from server.worker.runner import Animation, prepare, run

log = logging.getLogger("fada.worker")

_BEAT_S = 2.0
_RETRY_S = 1.0
_RECANCEL_S = 0.2


class Worker:
    """``pipelines`` by name; the first is the default."""

    def __init__(
        self, settings: Settings, work: Work, pipelines: dict[str, AvatarPipeline]
    ) -> None:
        self._settings = settings
        self._work = work
        self._models = [view(pipeline.info) for pipeline in pipelines.values()]
        self._network = ThreadPoolExecutor(1, "network")
        self._portraits = ThreadPoolExecutor(1, "portraits")  # the trackers are not thread-safe
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "draw")
        self._batchers = {name: Batcher(p, self._network) for name, p in pipelines.items()}
        self._places = asyncio.Semaphore(settings.sessions_per_worker)
        self._jobs: set[asyncio.Task[None]] = set()

    async def serve(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, then finish what is in hand, within the drain time."""
        await self._work.join()
        await self._work.beat(self._models)
        background = [asyncio.create_task(b.run()) for b in self._batchers.values()]
        background.append(asyncio.create_task(self._beat()))
        try:
            await self._claim(stop)
            if self._jobs:
                await asyncio.wait(self._jobs, timeout=self._settings.drain_s)
        finally:
            await _cancelled([*self._jobs, *background])
            await self._work.leave()
            for executor in (self._network, self._portraits, self._pool):
                executor.shutdown(cancel_futures=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                await self._work.beat(self._models)
            except BrokerLost as error:
                log.warning("no heartbeat: %s", error)

    async def _claim(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._places.acquire()
            claim = None
            try:
                claim = await self._work.claim()
            except BrokerLost as error:
                log.warning("no jobs to be had: %s", error)
                await asyncio.sleep(_RETRY_S)
            if claim is None:
                self._places.release()
                continue
            task = asyncio.create_task(self._job(claim))
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)

    async def _job(self, claim: Claim) -> None:
        """One job from claim to end; only the end of the process gets past it."""
        started_s = time.monotonic()
        # Said when the readers are gone: nobody hears it, but the job's place is free again.
        ending: messages.Ending = messages.Failed(
            code="internal_error", detail="nobody read the video"
        )
        outcome = "unwanted"
        try:
            ending = await self._while_wanted(claim)
            outcome = "done"
        except ServiceError as error:
            ending = messages.Failed(code=error.code, detail=error.detail)
            outcome = error.code
        except Unwanted as error:
            outcome = str(error)
        except asyncio.CancelledError:
            ending = messages.Failed(code="internal_error", detail="the worker is stopping")
            raise
        except Exception:
            log.exception("job %s failed", claim.job_id)
            ending = messages.Failed(code="internal_error", detail="the job could not be done")
            outcome = ending.code
        finally:
            self._places.release()
            await self._say(claim, ending)
            seconds = time.monotonic() - started_s
            log.info("job %s: %s after %.2f s", claim.job_id, outcome, seconds)

    async def _say(self, claim: Claim, ending: messages.Ending) -> None:
        try:
            await self._work.end(claim.job_id, ending)
            await self._work.release(claim)
        except BrokerLost as error:
            log.warning("job %s: nobody can be told that it ended: %s", claim.job_id, error)

    async def _while_wanted(self, claim: Claim) -> messages.AvatarMade | messages.Done:
        """Run the job; raises `Unwanted` as soon as its readers cancel it."""
        live = isinstance(claim.request, messages.LiveRequest)
        pace = Pace(LIVE_AHEAD if live else AHEAD, PATIENCE_S)
        heard: LiveInput | None = None
        job: Coroutine[Any, Any, messages.AvatarMade | messages.Done]
        if isinstance(claim.request, messages.AvatarRequest):
            job = self._make_avatar(claim.job_id, claim.request)
        elif isinstance(claim.request, messages.LiveRequest):
            heard = LiveInput(claim.request, time.monotonic)
            job = self._live(claim.job_id, claim.request, heard, pace)
        else:
            job = self._animate(claim.job_id, claim.request, pace)
        main: asyncio.Task[messages.AvatarMade | messages.Done] = asyncio.create_task(job)
        watch = asyncio.create_task(self._listen(claim.job_id, pace, heard))
        try:
            await asyncio.wait({main, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not main.done():
                watch.result()
            return await main
        finally:
            await _cancelled([main, watch])

    async def _listen(self, job_id: str, pace: Pace, heard: LiveInput | None) -> None:
        async for command in self._work.commands(job_id):
            if isinstance(command, messages.Cancel):
                raise Unwanted("cancelled")
            if isinstance(command, messages.Read):
                pace.read(command.index)
            elif heard is not None:
                heard.hear(command)

    async def _make_avatar(
        self, job_id: str, request: messages.AvatarRequest
    ) -> messages.AvatarMade:
        reference = await self._encode(job_id, self._batcher(request.model).pipeline)
        avatar = AvatarView(
            avatar_id=request.avatar_id,
            width=reference.width,
            height=reference.height,
            face=FaceView(box=reference.face_box, confidence=reference.face_confidence),
        )
        await self._work.save_avatar(avatar, reference.to_bytes())
        return messages.AvatarMade(avatar=avatar)

    async def _animate(
        self, job_id: str, request: messages.AnimateRequest, pace: Pace
    ) -> messages.Done:
        deadline_s = math.inf if request.keep else time.monotonic()
        batcher = self._batcher(request.model)
        animation = await self._prepare(job_id, request, batcher.pipeline)
        emit = partial(self._publish, job_id, pace)

        async def room() -> None:
            if not request.keep:
                await pace.room()

        return await run(animation, job_id, deadline_s, batcher, self._pool, emit, room)

    async def _live(
        self, job_id: str, request: messages.LiveRequest, heard: LiveInput, pace: Pace
    ) -> messages.Done:
        batcher = self._batcher(request.model)
        reference = await self._reference(job_id, request.avatar_id, batcher.pipeline)
        emit = partial(self._publish, job_id, pace)
        session = LiveSession(
            batcher.pipeline, reference, request, heard, emit, pace.room, self._pool
        )
        return await session.run(job_id, batcher)

    async def _publish(self, job_id: str, pace: Pace, event: messages.Progress) -> None:
        if isinstance(event, messages.Fragment):
            pace.made(event.index)
        if not await self._work.publish(job_id, event):
            raise Unwanted("cancelled")

    async def _prepare(
        self, job_id: str, request: messages.AnimateRequest, pipeline: AvatarPipeline
    ) -> Animation:
        audio = await self._work.part(job_id, "audio")
        if audio is None:
            raise ServiceError("not_found", "the uploaded audio has expired")
        loop = asyncio.get_running_loop()
        speech = await loop.run_in_executor(
            self._pool, decode_audio, audio, SAMPLE_RATE, self._settings.max_audio_s
        )
        reference = await self._reference(job_id, request.avatar_id, pipeline)
        return await loop.run_in_executor(
            self._pool, prepare, pipeline, reference, speech, request.options, request.seed
        )

    async def _reference(
        self, job_id: str, avatar_id: str | None, pipeline: AvatarPipeline
    ) -> Reference:
        if avatar_id is None:
            return await self._encode(job_id, pipeline)
        packed = await self._work.load_avatar(avatar_id)
        if packed is None:
            raise ServiceError("not_found", f"there is no avatar {avatar_id!r}")
        return Reference.from_bytes(packed)

    async def _encode(self, job_id: str, pipeline: AvatarPipeline) -> Reference:
        portrait = await self._work.part(job_id, "portrait")
        if portrait is None:
            raise ServiceError("not_found", "the uploaded portrait has expired")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._portraits, encode_portrait, pipeline, portrait)

    def _batcher(self, model: str) -> Batcher:
        if model not in self._batchers:
            raise ServiceError(
                "invalid_option",
                f"model is {model!r}; this worker has {', '.join(self._batchers)}",
            )
        return self._batchers[model]


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel and wait, so that nothing of them is left; results were looked at before.

    Sessions were seen to outlive a single cancellation, perhaps since ``wait_for`` before Python
    3.12 can lose one that comes with its result: so, again.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_RECANCEL_S)
    await asyncio.gather(*tasks, return_exceptions=True)


async def _serve_until_told(
    settings: Settings, url: str, pipelines: dict[str, AvatarPipeline]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    limits = Limits(
        job_ttl_s=settings.job_ttl_s,
        avatar_ttl_s=settings.avatar_ttl_s,
        max_avatars=settings.max_avatars,
        max_videos=settings.max_videos,
    )
    async with connect(url) as connection:
        work = Work(connection, liveness.worker_id(os.getpid()), limits)
        await Worker(settings, work, pipelines).serve(stop)


def main(settings: Settings, url: str) -> None:
    """Load the students, then work until SIGTERM or SIGINT."""
    pipelines = load_pipelines(settings.pipeline, settings.models)
    log.info("loaded %s", ", ".join(pipelines))
    asyncio.run(_serve_until_told(settings, url, pipelines))
