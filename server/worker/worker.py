"""The worker process: claims jobs, renews their leases, publishes how each ended, hands over.

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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server import logs, metrics, traces
from server.broker import liveness, messages
from server.broker.consumer import JobConsumer
from server.broker.leases import Claim
from server.broker.redis import BROKER_LOST, QUEUES, connect
from server.broker.reservations import Retention, configured_limits
from server.errors import ServiceError, SetupError
from server.process import usable_cores
from server.settings import CLIENT_SHARE, Settings
from server.tasks import cancel_and_wait
from server.worker import jobs, memory
from server.worker.backpressure import JobAborted, ReaderGone
from server.worker.calibration import Calibration
from server.worker.capacity import Capacity, Host
from server.worker.engines import WorkerEngines
from server.worker.host_load import HostLoad
from server.worker.marks import NO_MARKS, Marks, load_marks
from server.worker.pipelines import load_pipelines, model_view, student_engines
from server.worker.resources import WorkerResources
from server.worker.sandbox import Sandbox

if TYPE_CHECKING:
    from engines.student_engines import StudentEngines
    from model.pipeline import AvatarPipeline

log = logging.getLogger("fada.worker")

_HEARTBEAT_S = 0.5
_RETRY_S = 0.5
_LEASE_POLL_S = 0.15  # several times a lease
_SHORT_JOBS_AT_ONCE = 2  # of a kind
_NO_RECLAIM_S = 1.5
_LAST_CLAIM_S = 1.0
_DECODE_THREADS = 32
_MEET_S, _MEET_POLL_S = 3.0, 0.02  # for others that start here
_SESSIONS = 8  # jobs at once where neither a setting nor an engine's batch says how many


@dataclass(frozen=True)
class _HeldJob:
    """A claimed job. Cancelling ``task`` publishes nothing: the job may go on elsewhere."""

    claim: Claim
    task: asyncio.Task[None]


class Worker:
    """Serves ``pipelines``, by name; the first is the default."""

    def __init__(
        self,
        settings: Settings,
        consumer: JobConsumer,
        pipelines: Mapping[str, AvatarPipeline],
        *,
        capacity: Capacity,
        marks: Marks = NO_MARKS,
        calibration: Calibration | None = None,
        engines: StudentEngines | None = None,
    ) -> None:
        """``calibration`` is made anew for an engine that replaces another of ``engines``."""
        self._settings = settings
        self._consumer = consumer
        self._capacity = capacity
        self._models = [model_view(pipeline) for pipeline in pipelines.values()]
        self._sandbox = Sandbox()
        self._host_load = HostLoad()
        self._resources = WorkerResources(
            consumer,
            pipelines,
            capacity=capacity,
            sandbox=self._sandbox,
            max_audio_s=settings.max_audio_s,
            marks=marks,
        )
        self._engines = WorkerEngines(settings, self._resources, calibration, made=engines)
        self._held: dict[str, _HeldJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of jobs held and of jobs released
        self._room_changed = asyncio.Event()
        self._ending: set[str] = set()
        self._leaving = False
        self._no_reclaim_until_s = 0.0

    async def serve(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, then hand over all jobs, or finish them within the drain time."""
        async with contextlib.AsyncExitStack() as cleanup:  # last in, first out
            cleanup.callback(self._resources.close)
            cleanup.callback(self._sandbox.close)
            cleanup.push_async_callback(self._fail_all)
            stopping = asyncio.create_task(stop.wait())
            building = asyncio.create_task(self._engines.run())
            cleanup.push_async_callback(cancel_and_wait, [stopping, building])
            if self._engines.only:
                await asyncio.wait([stopping, building], return_when=asyncio.FIRST_COMPLETED)
                if not building.done():
                    return
                building.result()
            await self._consumer.join()
            await self._heartbeat()
            await self._consumer.started()
            lasting = [
                asyncio.create_task(self._resources.serve()),
                asyncio.create_task(self._repeat(_LEASE_POLL_S, self._keep_leases)),
            ]
            heartbeat = asyncio.create_task(self._repeat(_HEARTBEAT_S, self._heartbeat))
            claiming = [asyncio.create_task(self._claim(kind)) for kind in QUEUES]
            tasks = [stopping, heartbeat, *claiming, *lasting]
            cleanup.push_async_callback(cancel_and_wait, tasks)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # only a bug ends any of them
            self._leaving = True
            self._room_changed.set()
            # A claim in progress is completed, or its job would wait for its lease to end.
            await asyncio.wait(claiming, timeout=_LAST_CLAIM_S)
            await cancel_and_wait([heartbeat, *claiming])
            await self._drain()

    def _models_running(self, kind: str) -> list[str]:
        requests = [held.claim.request for held in self._held.values()]
        return [request.model for request in requests if request.kind == kind]

    def _has_room(self, kind: str) -> bool:
        """Whether to take another job of that kind: live sessions first, offline what is left."""
        if self._resources.quarantine:
            return False
        live, running = self._models_running("live"), self._models_running(kind)
        if kind == "live":
            taken = self._capacity.places_taken(live)
            return taken < self._capacity.places(taken)
        if kind in ("avatar", "verify"):
            return len(running) < _SHORT_JOBS_AT_ONCE
        return len(running) < max(1, self._capacity.max_sessions - len(live))

    async def _heartbeat(self) -> None:
        models = self._models_running("live")
        running, taken = len(models), self._capacity.places_taken(models)
        others, host = await self._consumer.other_workers(), socket.gethostname()
        neighbours = {name: one for name, one in others.items() if one.host == host}
        self._capacity.set_neighbours_busy(any(one.busy for one in neighbours.values()))
        self._capacity.review(taken, self._host(running, neighbours))
        # In sessions: the extra places that sessions of a costly model take are not offered.
        extra = taken - running
        places = max(0, self._capacity.places(taken) - extra)
        spare = self._capacity.estimate - extra - running
        if self._resources.quarantine:
            places, spare = running, 0
        self._room_changed.set()  # the capacity changes with the load
        heartbeat = messages.Heartbeat(
            models=self._models,
            live_places=places,
            live_running=running,
            live_spare=max(0, spare),
            busy=self._capacity.busy,
            late=self._capacity.late,
            host=host,
            detail=self._engines.detail,
        )
        await self._consumer.heartbeat(heartbeat)
        if spare < 0 and any(one.live_spare for one in self._successors(others)):
            # We reclaimed more than fits: workers with room get a session with each heartbeat.
            live = [job for job in self._held.values() if job.claim.request.kind == "live"]
            self._no_reclaim_until_s = time.monotonic() + _NO_RECLAIM_S
            await self._hand_over(live[-1:])

    def _host(self, running: int, neighbours: Mapping[str, messages.Heartbeat]) -> Host:
        """``neighbours`` by id: the other workers of this machine."""
        full = all(one.live_running >= one.live_places for one in neighbours.values())
        order = [(one.live_running, name) for name, one in neighbours.items()]
        return Host(
            cores=usable_cores(),
            load=self._host_load.read(),
            sessions=running + sum(one.live_running for one in neighbours.values()),
            next=full and all((running, self._consumer.worker_id) < other for other in order),
            late=any(one.late for one in neighbours.values()),
        )

    async def _repeat(self, pause_s: float, step: Callable[[], Awaitable[None]]) -> None:
        """Run ``step`` until cancelled, also while the broker is away."""
        while True:
            try:
                await step()
            except BROKER_LOST as error:
                log.warning("the broker does not answer: %s", error)
            await asyncio.sleep(pause_s)

    async def _claim(self, kind: str) -> None:
        """Take queued jobs of one kind while there is room."""
        while not self._leaving:
            if not self._has_room(kind):
                self._room_changed.clear()
                await self._room_changed.wait()
                continue
            try:
                claim = await self._consumer.claim(kind)
            except BROKER_LOST as error:
                log.warning("cannot claim jobs, the broker does not answer: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if claim is None:
                continue
            if self._resources.quarantine:  # since we asked
                await self._release([claim])
            else:
                self._start(claim)

    async def _release(self, claims: Sequence[Claim]) -> None:
        with contextlib.suppress(*BROKER_LOST):  # their leases run out by themselves
            await self._consumer.release(claims)

    async def _keep_leases(self) -> None:
        """Renew our leases before reclaiming expired ones, or a stalled worker would reclaim its
        own jobs."""
        await self._renew()
        if not self._leaving and time.monotonic() > self._no_reclaim_until_s:
            await self._reclaim()

    async def _reclaim(self) -> None:
        """Resume jobs that other workers left, without regard to room: they were admitted."""
        for kind in QUEUES:
            while not self._resources.quarantine:
                claim = await self._consumer.reclaim(kind, idle=not self._held)
                if claim is None:
                    break
                if self._leaving:  # since we asked
                    await self._consumer.release([claim])
                    return
                if claim.suspected_poison and not self._held:
                    self._resources.quarantine.add(claim.job_id)
                log.info("job %s: reclaimed after %d events", claim.job_id, claim.events)
                self._start(claim)
                await asyncio.sleep(0)

    async def _renew(self) -> None:
        held = list(self._held.values())
        renewed = await self._consumer.renew([job.claim for job in held])
        for job, ours in zip(held, renewed, strict=True):
            if not ours and job.claim.job_id not in self._ending:
                job.task.cancel()

    def _start(self, claim: Claim) -> None:
        before = self._held.get(claim.job_id)
        if before is not None:  # its lease had run out, and this worker reclaimed it
            before.task.cancel()
        held = _HeldJob(claim, asyncio.create_task(self._run(claim)))
        self._held[claim.job_id] = held
        self._tasks.add(held.task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._resources.quarantine.discard(claim.job_id)
            if self._held.get(claim.job_id) is held:
                del self._held[claim.job_id]
            self._room_changed.set()

        held.task.add_done_callback(ended)

    async def _run(self, claim: Claim) -> None:
        """One job from claim to end, with its log lines, metrics and trace."""
        logs.bind(job=claim.job_id)
        kind, started_s, outcome = claim.request.kind, time.monotonic(), "released"
        try:
            with metrics.job(kind), traces.span(f"{kind} job", claim.request.trace):
                outcome = await self._finish_job(claim)
        finally:
            metrics.job_ended(kind, outcome)
            log.info("%s: %s after %.2f s", kind, outcome, time.monotonic() - started_s)

    async def _finish_job(self, claim: Claim) -> str:
        """Do the job and publish its ending; returns the outcome for the metrics."""
        ending: messages.Ending
        try:
            ending = await jobs.run_job(self._resources, claim)
            outcome = "done"
        except ServiceError as error:
            ending = messages.Failed(code=error.code, detail=error.detail)
            outcome = error.code
        except JobAborted as error:
            # There is no reader for it, but it frees the job's place.
            ending = messages.Failed(code="internal_error", detail=str(error))
            outcome = "reader_gone" if isinstance(error, ReaderGone) else "aborted"
        except BROKER_LOST as error:
            log.warning("released the job, the broker does not answer: %s", error)
            return "released"
        except Exception:
            log.exception("the job failed")
            ending = messages.Failed(code="internal_error", detail="the job could not be done")
            outcome = ending.code
        await self._publish_ending(claim, ending)
        if outcome == "reader_gone":
            with contextlib.suppress(*BROKER_LOST):  # its keys expire by themselves
                await self._consumer.drop(claim)
        return outcome

    async def _publish_ending(self, claim: Claim, ending: messages.Ending) -> None:
        self._ending.add(claim.job_id)  # the lease ends with it, and must not cancel the job
        try:
            await self._consumer.end(claim, ending)
        except BROKER_LOST as error:
            log.warning("job %s: its ending could not be published: %s", claim.job_id, error)
        finally:
            self._ending.discard(claim.job_id)

    async def _drain(self) -> None:
        """Hand over to other workers; without any, finish what the drain time allows."""
        give_up_s = time.monotonic() + self._settings.drain_s
        self._capacity.set_neighbours_busy(False)  # without heartbeats it would never change again
        with contextlib.suppress(*BROKER_LOST):
            await self._consumer.leave()
            while self._held and time.monotonic() < give_up_s:
                successors = self._successors(await self._consumer.other_workers())
                held = list(self._held.values())
                movable = [job for job in held if self._consumer.can_move(job.claim, successors)]
                if movable:
                    await self._hand_over(movable)
                elif held:
                    await asyncio.wait([job.task for job in held], timeout=_LEASE_POLL_S)

    def _successors(self, others: Mapping[str, messages.Heartbeat]) -> list[messages.Heartbeat]:
        """Those that can go on from our snapshots."""
        return [one for one in others.values() if messages.reads(one.format, self._consumer.format)]

    async def _hand_over(self, held: Sequence[_HeldJob]) -> None:
        await cancel_and_wait([job.task for job in held])
        await self._consumer.release([job.claim for job in held])

    async def _fail_all(self) -> None:
        held = list(self._held.values())
        # Also tasks of jobs that were claimed again: they may still run after their cancellation,
        # and would find the thread pools closed.
        await cancel_and_wait(self._tasks)
        for job in held:
            failed = messages.Failed(code="internal_error", detail="the worker is stopping")
            await self._publish_ending(job.claim, failed)
        with contextlib.suppress(*BROKER_LOST):
            await self._consumer.leave()


def main(settings: Settings, url: str) -> None:
    """Load the models, then work until SIGTERM or SIGINT.

    Raises `SetupError` for settings that cannot be served.
    """
    if len(settings.devices) > 1:
        raise SetupError(
            f"FADA_DEVICES = {','.join(settings.devices)}, expected one GPU for each `fada worker`"
        )
    if settings.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.devices[0]  # CUDA reads it on first use
    asyncio.run(_announce_start(url))
    memory.map_large_blocks()
    memory.pause_gc()
    marks = load_marks(settings)
    engines = student_engines(settings)
    pipelines = load_pipelines(settings, engines=engines)
    calibration = Calibration(
        pipelines,
        settings.workers or 1,
        marks.encoding,
        meet=lambda: asyncio.run(_meet(url)),
    )
    capacity = calibration.capacity(settings.sessions_per_worker or _SESSIONS)
    log.info("loaded %s; places for %d live sessions", ", ".join(pipelines), capacity.places(0))
    memory.freeze_gc_heap()

    def worker(consumer: JobConsumer) -> Worker:
        return Worker(
            settings,
            consumer,
            pipelines,
            capacity=capacity,
            calibration=calibration,
            engines=engines,
            marks=marks,
        )

    asyncio.run(_serve_until_signalled(settings, url, worker))


async def _announce_start(url: str) -> None:
    """Have jobs wait while the models load."""
    async with connect(url) as connection:
        with contextlib.suppress(*BROKER_LOST):
            await liveness.announce_start(connection, liveness.worker_id(os.getpid()))


async def _meet(url: str) -> None:
    """Return when all other workers that start on this machine have loaded their models."""
    ours, deadline_s = liveness.worker_id(os.getpid()), time.monotonic() + _MEET_S
    async with connect(url) as connection:
        with contextlib.suppress(*BROKER_LOST):
            await liveness.announce_loaded(connection, ours)
            while time.monotonic() < deadline_s:
                starting = await liveness.starting_workers(connection)
                here = f"{socket.gethostname()}-"
                if all(loaded for name, loaded in starting.items() if name.startswith(here)):
                    return
                await asyncio.sleep(_MEET_POLL_S)


async def _serve_until_signalled(
    settings: Settings, url: str, worker: Callable[[JobConsumer], Worker]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # These threads wait for decoders, so there are more of them than cores.
    loop.set_default_executor(ThreadPoolExecutor(_DECODE_THREADS, "decode"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    retention = Retention(
        job_ttl_s=settings.job_ttl_s,
        avatar_ttl_s=settings.avatar_ttl_s,
        max_avatars=settings.max_avatars,
        max_videos=settings.max_videos,
        avatar_share=settings.client_share or CLIENT_SHARE,
    )
    async with connect(url, settings.data) as connection, metrics.reporting(connection, "worker"):
        limits = await configured_limits(connection, settings.redis_bytes, settings.data_bytes)
        name = liveness.worker_id(os.getpid())
        consumer = JobConsumer(connection, name, retention, limits=limits)
        await worker(consumer).serve(stop)
