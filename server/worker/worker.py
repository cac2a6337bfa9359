"""The worker process: claims jobs, keeps their leases, says how each ended, hands over.

What a job does is in `server.worker.jobs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server import logs, metrics, traces
from server.broker import liveness, messages
from server.broker.consumer import Claim, JobConsumer, Retention
from server.broker.redis import BROKER_LOST, QUEUES, connect
from server.errors import ServiceError
from server.settings import Settings
from server.tasks import cancel_and_wait
from server.worker import jobs, memory
from server.worker.backpressure import JobAborted, ReaderGone
from server.worker.capacity import Capacity, own_cores, window_cost_s
from server.worker.loading import load_pipelines, view
from server.worker.resources import WorkerResources
from server.worker.sandbox import Sandbox

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

log = logging.getLogger("fada.worker")

_BEAT_S = 0.5
_RETRY_S = 0.5
_LOOK_S = 0.15  # several looks a lease
_AVATARS_AT_ONCE = 2
_GENEROUS_S = 1.5
_LAST_CLAIM_S = 1.0
_WAITING_THREADS = 32


@dataclass(frozen=True)
class _Held:
    """A job in hand. Cancelling ``task`` says nothing to anybody: the job may go on elsewhere."""

    claim: Claim
    task: asyncio.Task[None]


class Worker:
    """``pipelines`` by name; the first is the default."""

    def __init__(
        self,
        settings: Settings,
        work: JobConsumer,
        pipelines: dict[str, AvatarPipeline],
        capacity: Capacity,
    ) -> None:
        self._settings = settings
        self._work = work
        self._capacity = capacity
        self._models = [view(pipeline) for pipeline in pipelines.values()]
        self._sandbox = Sandbox()
        self._resources = WorkerResources(
            work, pipelines, settings.max_audio_s, capacity, self._sandbox
        )
        self._held: dict[str, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of all jobs: those held, and those let go
        self._changed = asyncio.Event()
        self._ending: set[str] = set()
        self._leaving = False
        self._generous_until_s = 0.0

    async def serve(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, then hand over what is in hand, or finish it in the drain time."""
        async with contextlib.AsyncExitStack() as at_the_end:  # the last first, whatever it raises
            at_the_end.callback(self._resources.close)
            at_the_end.callback(self._sandbox.close)
            at_the_end.push_async_callback(self._end_all)
            await self._work.join()
            await self._beat()
            keeping = [
                asyncio.create_task(self._resources.serve()),
                asyncio.create_task(self._again(_LOOK_S, self._look)),
            ]
            beating = asyncio.create_task(self._again(_BEAT_S, self._beat))
            taking = [asyncio.create_task(self._claim(kind)) for kind in QUEUES]
            told = asyncio.create_task(stop.wait())
            at_the_end.push_async_callback(cancel_and_wait, [told, beating, *taking, *keeping])
            done, _ = await asyncio.wait(
                {told, beating, *keeping, *taking}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {told}:
                task.result()  # none of them ends but by a bug
            self._leaving = True
            self._changed.set()
            # What is being claimed at this moment is not dropped half-way.
            await asyncio.wait(taking, timeout=_LAST_CLAIM_S)
            await cancel_and_wait([beating, *taking])
            await self._drain()

    def _running(self, kind: str) -> int:
        return len(self._models_of(kind))

    def _models_of(self, kind: str) -> list[str]:
        requests = [held.claim.request for held in self._held.values()]
        return [request.model for request in requests if request.kind == kind]

    def _room(self, kind: str) -> bool:
        """Whether to take another job of that kind: live sessions first, offline what is left."""
        if self._resources.quarantine:
            return False
        live, running = self._running("live"), self._running(kind)
        if kind == "live":
            taken = self._capacity.taken(self._models_of(kind))
            return taken < self._capacity.places(taken)
        if kind == "avatar":
            return running < _AVATARS_AT_ONCE
        return running < max(1, self._settings.sessions_per_worker - live)

    async def _beat(self) -> None:
        models = self._models_of("live")
        running, taken = len(models), self._capacity.taken(models)
        # Told in sessions: what those of a dearer student take beyond their own is not there.
        places = max(0, self._capacity.places(taken) - (taken - running))
        if self._resources.quarantine:
            places = running
        self._changed.set()  # room comes and goes with the capacity, too
        heartbeat = messages.Heartbeat(
            models=self._models,
            live_places=places,
            live_running=running,
            busy=self._capacity.busy,
            host=socket.gethostname(),
        )
        await self._work.heartbeat(heartbeat)
        others = await self._work.other_workers()
        self._capacity.beside(busy=any(o.busy for o in others if o.host == heartbeat.host))
        if running > places and any(o.live_running < o.live_places for o in others):
            # More was taken over than fits: who has room now gets a session, one a beat.
            live = [one for one in self._held.values() if one.claim.request.kind == "live"]
            self._generous_until_s = time.monotonic() + _GENEROUS_S
            await self._hand_over(live[-1:])

    async def _again(self, pause_s: float, step: Callable[[], Awaitable[None]]) -> None:
        """``step`` for ever; while the broker is away nothing comes of it."""
        while True:
            try:
                await step()
            except BROKER_LOST as error:
                log.warning("the broker does not answer: %s", error)
            await asyncio.sleep(pause_s)

    async def _claim(self, kind: str) -> None:
        """Take queued jobs of one kind, as long as there is room."""
        while not self._leaving:
            if not self._room(kind):
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                claim = await self._work.claim(kind)
            except BROKER_LOST as error:
                log.warning("no jobs to be had: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if claim is None:
                continue
            if self._resources.quarantine:  # meanwhile
                await self._release([claim])
            else:
                self._begin(claim)

    async def _release(self, claims: Sequence[Claim]) -> None:
        with contextlib.suppress(*BROKER_LOST):  # their leases end by themselves
            await self._work.release(claims)

    async def _look(self) -> None:
        """Own leases first: who was held up must not take his own jobs for another's."""
        await self._renew()
        if not self._leaving and time.monotonic() > self._generous_until_s:
            await self._reclaim()

    async def _reclaim(self) -> None:
        """Go on with what other workers left; there is room for it, for it was admitted before."""
        for kind in QUEUES:
            while not self._resources.quarantine:
                claim = await self._work.reclaim(kind, idle=not self._held)
                if claim is None:
                    break
                if self._leaving:  # meanwhile
                    await self._work.release([claim])
                    return
                if claim.suspected_poison and not self._held:
                    self._resources.quarantine.add(claim.job_id)
                log.info("job %s: taken over after %d events", claim.job_id, claim.events)
                self._begin(claim)
                await asyncio.sleep(0)

    async def _renew(self) -> None:
        held = list(self._held.values())
        kept = await self._work.renew([one.claim for one in held])
        for one, still in zip(held, kept, strict=True):
            if not still and one.claim.job_id not in self._ending:
                one.task.cancel()

    def _begin(self, claim: Claim) -> None:
        before = self._held.get(claim.job_id)
        if before is not None:  # its lease had ended, and this worker was the first to see it
            before.task.cancel()
        held = _Held(claim, asyncio.create_task(self._job(claim)))
        self._held[claim.job_id] = held
        self._tasks.add(held.task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._resources.quarantine.discard(claim.job_id)
            if self._held.get(claim.job_id) is held:
                del self._held[claim.job_id]
            self._changed.set()

        held.task.add_done_callback(ended)

    async def _job(self, claim: Claim) -> None:
        """One job from claim to end, for the log, the figures and the trace."""
        logs.bind(job=claim.job_id)
        kind, started_s, outcome = claim.request.kind, time.monotonic(), "released"
        try:
            with metrics.job(kind), traces.span(f"{kind} job", claim.request.trace):
                outcome = await self._ended(claim)
        finally:
            metrics.job_ended(kind, outcome)
            log.info("%s: %s after %.2f s", kind, outcome, time.monotonic() - started_s)

    async def _ended(self, claim: Claim) -> str:
        """Do the job and say how it ended, if it did; the same in one word."""
        ending: messages.Ending
        try:
            ending = await jobs.run_job(self._resources, claim)
            outcome = "done"
        except ServiceError as error:
            ending = messages.Failed(code=error.code, detail=error.detail)
            outcome = error.code
        except JobAborted as error:
            # Nobody hears it, but the job's place is free again.
            ending = messages.Failed(code="internal_error", detail=str(error))
            outcome = "reader_gone" if isinstance(error, ReaderGone) else "aborted"
        except BROKER_LOST as error:
            log.warning("given up, the broker does not answer: %s", error)
            return "released"
        except Exception:
            log.exception("the job failed")
            ending = messages.Failed(code="internal_error", detail="the job could not be done")
            outcome = ending.code
        await self._say(claim, ending)
        if outcome == "reader_gone":
            with contextlib.suppress(*BROKER_LOST):  # it expires by itself, too
                await self._work.drop(claim)
        return outcome

    async def _say(self, claim: Claim, ending: messages.Ending) -> None:
        self._ending.add(claim.job_id)  # its lease ends in the midst of this
        try:
            await self._work.end(claim, ending)
        except BROKER_LOST as error:
            log.warning("job %s: nobody can be told that it ended: %s", claim.job_id, error)
        finally:
            self._ending.discard(claim.job_id)

    async def _drain(self) -> None:
        """Let others go on with what is in hand; who is the last finishes what he can."""
        give_up_s = time.monotonic() + self._settings.drain_s
        self._capacity.beside(busy=False)  # of which nobody tells any more
        with contextlib.suppress(*BROKER_LOST):
            await self._work.leave()
            while self._held and time.monotonic() < give_up_s:
                others = await self._work.other_workers()
                held = list(self._held.values())
                if others:
                    await self._hand_over(held)
                elif held:
                    await asyncio.wait([one.task for one in held], timeout=_LOOK_S)

    async def _hand_over(self, held: Sequence[_Held]) -> None:
        await cancel_and_wait([one.task for one in held])
        await self._work.release([one.claim for one in held])

    async def _end_all(self) -> None:
        held = list(self._held.values())
        # Also those whose job was claimed again: once cancelled is not ended yet, and what goes on
        # would find the threads gone.
        await cancel_and_wait(self._tasks)
        for one in held:
            failed = messages.Failed(code="internal_error", detail="the worker is stopping")
            await self._say(one.claim, failed)
        with contextlib.suppress(*BROKER_LOST):
            await self._work.leave()


async def _serve_until_told(
    settings: Settings, url: str, pipelines: dict[str, AvatarPipeline], capacity: Capacity
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # They wait for decoders, so there are more of them than cores.
    loop.set_default_executor(ThreadPoolExecutor(_WAITING_THREADS, "decode"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    retention = Retention(
        job_ttl_s=settings.job_ttl_s,
        avatar_ttl_s=settings.avatar_ttl_s,
        max_avatars=settings.max_avatars,
        max_videos=settings.max_videos,
    )
    async with connect(url) as connection, metrics.reporting(connection, "worker"):
        work = JobConsumer(connection, liveness.worker_id(os.getpid()), retention)
        await Worker(settings, work, pipelines, capacity).serve(stop)


def main(settings: Settings, url: str) -> None:
    """Load the students, then work until SIGTERM or SIGINT."""
    memory.map_large_blocks()
    pipelines = load_pipelines(settings)
    costs_s = {name: window_cost_s(pipeline) for name, pipeline in pipelines.items()}
    cost_s = next(iter(costs_s.values()))
    hops_s = {name: pipeline.window_spec.hop_s for name, pipeline in pipelines.items()}
    hop_s = next(iter(hops_s.values()))
    dearer = {name: one_s / hops_s[name] * hop_s / cost_s for name, one_s in costs_s.items()}
    most = settings.sessions_per_worker
    capacity = Capacity(own_cores(settings.workers or 1), cost_s, most, dearer=dearer, hop_s=hop_s)
    log.info(
        "loaded %s; a window costs %.0f ms, there are places for %d live sessions",
        ", ".join(pipelines),
        cost_s * 1000,
        capacity.places(0),
    )
    memory.freeze_gc_heap()
    asyncio.run(_serve_until_told(settings, url, pipelines, capacity))
