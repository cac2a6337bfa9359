"""Several workers over a real broker, in this process: which claims a job and which releases it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from server.api.protocol import AnimationOptions
from server.broker import attachment, messages, redis
from server.broker.consumer import JobConsumer
from server.broker.embedded import embedded_server, valkey_program
from server.broker.leases import Claim
from server.broker.producer import JobProducer
from server.broker.reservations import Retention
from server.errors import ServiceError
from server.settings import Settings
from server.worker.capacity import Capacity
from server.worker.engines import WorkerEngines
from server.worker.resources import WorkerResources
from server.worker.worker import Worker
from tests.server.fake_pipeline import FakePipeline
from tests.server.media_files import picture, sound

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0  # a bound, not an expected duration


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded_server(valkey_program()) as server:
        yield server.url


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session waits for its first connection, which none of these has, for a whole test."""
    monkeypatch.setattr(attachment, "_FIRST_TTL_S", int(10 * PATIENCE_S))


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[JobProducer]:
    async with redis.connect(url) as connection:
        await connection.redis.flushall()
        yield JobProducer(connection, 16, 100)


@asynccontextmanager
async def working(
    client: JobProducer,
    name: str,
    places: int = 8,
    *,
    drain_s: float = 5.0,
    kind: type[JobConsumer] = JobConsumer,
    version: int = messages.FORMAT,
) -> AsyncIterator[asyncio.Event]:
    """A worker with places for so many live sessions; setting the event tells it to stop."""
    settings = Settings(sessions_per_worker=places, drain_s=drain_s)  # type: ignore[call-arg]
    stop = asyncio.Event()
    worker = worker_of(client, name, settings, kind=kind, version=version)
    serving = asyncio.create_task(worker.serve(stop))
    try:
        await until(client, lambda holders: True, name)
        yield stop
    finally:
        stop.set()
        await serving


def worker_of(
    client: JobProducer,
    name: str,
    settings: Settings,
    *,
    kind: type[JobConsumer] = JobConsumer,
    version: int = messages.FORMAT,
) -> Worker:
    work = kind(
        client.connection,
        name,
        Retention(job_ttl_s=100, avatar_ttl_s=100, max_avatars=8, max_videos=8),
        format=version,
    )
    capacity = Capacity(cores=1.0, window_s=0.001, max_sessions=settings.sessions_per_worker or 8)
    return Worker(settings, work, {"fake": FakePipeline("fake")}, capacity=capacity)


async def until(
    client: JobProducer, true: Callable[[list[str]], bool], living: str | None = None
) -> None:
    """Wait until ``true`` holds for the holders of live sessions, and worker ``living`` lives."""
    queue = redis.queue_key("live")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if living is None or await client.connection.redis.exists(redis.worker_key(living)):
            held: list[dict[str, bytes]] = []
            if await client.connection.redis.exists(queue):
                held = await client.connection.redis.xpending_range(
                    queue, redis.GROUP, "-", "+", 100
                )
            if true(sorted(one["consumer"].decode() for one in held)):
                return
        await asyncio.sleep(0.02)
    pytest.fail(f"the condition did not hold within {PATIENCE_S:g} s")


def live(seed: int) -> messages.LiveRequest:
    options = AnimationOptions(size=128)
    return messages.LiveRequest(
        options=options, model="fake", seed=seed, sample_rate=16_000, idle=True
    )


async def talk(client: JobProducer, seed: int) -> str:
    return await client.submit(live(seed), {"portrait": picture()})


async def watch(client: JobProducer, job_id: str) -> list[messages.AnyEvent]:
    return [event async for event in client.follow(job_id, consume=True)]


def check(events: list[messages.AnyEvent]) -> None:
    fragments = [event for event in events if isinstance(event, messages.JobFragment)]
    assert [f.index for f in fragments] == list(range(len(fragments)))
    assert isinstance(events[-1], messages.JobDone), events[-1]


async def test_a_stopping_worker_hands_its_sessions_over(url: str) -> None:
    async with clients(url) as client, working(client, "w1") as stop:
        job_id = await talk(client, 1)
        watching = asyncio.create_task(watch(client, job_id))
        await until(client, lambda holders: holders == ["w1"])
        async with working(client, "w2"):
            stop.set()
            await until(client, lambda holders: holders == ["w2"])
            await client.send_command(job_id, 1, messages.End())
            check(await watching)


async def test_the_last_worker_finishes_its_sessions(url: str) -> None:
    async with clients(url) as client, working(client, "w1") as stop:
        job_id = await talk(client, 1)
        watching = asyncio.create_task(watch(client, job_id))
        await until(client, lambda holders: holders == ["w1"])
        stop.set()
        await client.send_command(job_id, 1, messages.End())
        check(await watching)


async def test_sessions_beyond_the_drain_time_end_with_an_error(url: str) -> None:
    async with clients(url) as client, working(client, "w1", drain_s=0.3) as stop:
        watching = asyncio.create_task(watch(client, await talk(client, 1)))
        await until(client, lambda holders: holders == ["w1"])
        stop.set()
        ending = (await watching)[-1]
        assert isinstance(ending, messages.Failed) and "stopping" in ending.detail


async def test_reclaimed_sessions_beyond_capacity_go_to_a_new_worker(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All are handed over; on a busy machine late jobs would be claimed as well.
    monkeypatch.setattr("server.broker.leases.LEASE_S", 60.0)
    async with clients(url) as client, working(client, "w0", places=3) as stop:
        jobs = [await talk(client, seed) for seed in range(3)]
        watching = [asyncio.create_task(watch(client, job_id)) for job_id in jobs]
        await until(client, lambda holders: holders == ["w0"] * 3)
        async with working(client, "w1", places=1):
            stop.set()
            await until(client, lambda holders: holders == ["w1"] * 3)
            async with working(client, "w2", places=2):
                await until(client, lambda holders: holders == ["w1", "w2", "w2"])
                for job_id in jobs:
                    await client.send_command(job_id, 1, messages.End())
                for task in watching:
                    check(await task)


async def test_sessions_continue_through_a_rolling_upgrade(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.broker.follow._UNCLAIMED_S", PATIENCE_S)
    newer = messages.FORMAT + 1
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(clients(url))
        stop_old = await stack.enter_async_context(working(client, "old"))
        first = await talk(client, 1)
        watching = [asyncio.create_task(watch(client, first))]
        await until(client, lambda holders: holders == ["old"])

        upgraded = replace(client, format=newer)
        with pytest.raises(ServiceError, match=f"expected {newer}"):
            await talk(upgraded, 2)
        await announce(client, "soon", newer)
        second = await talk(upgraded, 2)
        watching.append(asyncio.create_task(watch(upgraded, second)))
        await until(client, lambda _: f"{second}: left to other workers" in caplog.text)
        assert await client.connection.redis.hget(redis.job_key(second), "attempts") == b"0"

        stop_new = await stack.enter_async_context(working(client, "new", version=newer))
        await until(client, lambda holders: holders == ["new", "old"])
        stop_old.set()
        await until(client, lambda holders: holders == ["new", "new"])
        for job_id in (first, second):  # the new worker has stored a snapshot of each
            while await client.connection.redis.get(redis.state_key(job_id)) is None or (
                await client.connection.redis.hget(redis.job_key(job_id), "format")
                != str(newer).encode()
            ):
                await asyncio.sleep(0.02)
        for name, version in (("old again", messages.FORMAT), ("new too", newer)):
            await stack.enter_async_context(working(client, name, version=version))
        stop_new.set()
        await until(client, lambda holders: holders == ["new too", "new too"])
        for job_id in (first, second):
            await client.send_command(job_id, 1, messages.End())
        for task in watching:
            check(await task)


async def announce(client: JobProducer, name: str, version: int) -> None:
    """One heartbeat of a worker that has not started to claim jobs."""
    soon = messages.Heartbeat(models=[], live_places=8)
    retention = Retention(job_ttl_s=100, avatar_ttl_s=100, max_avatars=8, max_videos=8)
    await JobConsumer(client.connection, name, retention, format=version).heartbeat(soon)


async def test_a_portrait_does_not_wait_behind_sessions(url: str) -> None:
    async with clients(url) as client, working(client, "w1", places=1):
        held = await talk(client, 1)
        request = messages.AnimateRequest(
            options=AnimationOptions(size=1024), model="fake", seed=1, keep=True
        )
        long = await client.submit(request, {"portrait": picture(), "audio": sound(60.0)})
        await until(client, lambda holders: holders == ["w1"])
        asked = messages.AvatarRequest(model="fake", avatar_id="a")
        job_id = await client.submit(asked, {"portrait": picture()})
        events = await asyncio.wait_for(watch(client, job_id), 5.0)
        assert isinstance(events[-1], messages.AvatarCreated)
        for job in (held, long):
            await client.cancel(job)


async def test_cancelling_frees_the_worker_soon(url: str) -> None:
    async with clients(url) as client, working(client, "w1", places=1):
        for seed in range(3):
            job_id = await talk(client, seed)
            await until(client, lambda holders: holders == ["w1"])
            assert await client.cancel(job_id)
            await until(client, lambda holders: holders == [])


async def test_a_session_that_waits_for_speech_ends_when_its_client_does_not_come_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.worker.jobs._READER_POLL_S", 0.05)
    async with clients(url) as client, working(client, "w1", places=1):
        silent = live(1).model_copy(update={"idle": False})
        job_id = await client.submit(silent, {"portrait": picture()})
        assert await attachment.attach(client.connection, job_id) is not None
        events = client.follow(job_id, consume=True)
        while not isinstance(await anext(events), messages.Started):
            pass
        await until(client, lambda holders: holders == ["w1"])
        # As it expires some seconds after its connection was lost.
        await client.connection.redis.delete(redis.reader_key(job_id))
        await until(client, lambda holders: holders == [])
        job = redis.job_key(job_id)
        deadline = time.monotonic() + PATIENCE_S
        while left := await client.connection.redis.keys(f"{job}*"):
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.02)


class Forgetful(JobConsumer):
    """Its leases expire while it works, as those of a stalled process."""

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        return [True] * len(claims)


async def test_no_task_outlives_its_worker_after_a_second_claim(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first claim's job swallows its cancellation and still runs when the worker stops."""
    at_work: list[int] = []
    asked: list[int] = []

    async def stubborn(resources: WorkerResources, claim: Claim) -> messages.JobDone:
        at_work.append(claim.token)
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    await asyncio.sleep(0.02)
                    await loop.run_in_executor(resources.pool, int)
                except asyncio.CancelledError:
                    if claim.token != 1 or asked:
                        raise
                    asked.append(claim.token)
        finally:
            at_work.remove(claim.token)

    monkeypatch.setattr("server.worker.jobs.run_job", stubborn)
    async with clients(url) as client:
        async with working(client, "w1", drain_s=0.1, kind=Forgetful):
            await talk(client, 1)
            await until(client, lambda _: asked == [1] and 1 in at_work and len(at_work) > 1)
        assert at_work == []


async def test_a_worker_may_join_only_on_built_engines(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, started = asyncio.Event(), asyncio.Event()

    async def run(self: WorkerEngines) -> None:
        started.set()
        await built.wait()

    monkeypatch.setattr(WorkerEngines, "run", run)
    only = Settings(engines_build="only")  # type: ignore[call-arg]
    async with clients(url) as client:
        stop = asyncio.Event()
        building = asyncio.create_task(worker_of(client, "early", only).serve(stop))
        await started.wait()
        stop.set()
        await building  # it stops, and never joined
        assert not await client.connection.redis.exists(redis.worker_key("early"))
        stop = asyncio.Event()
        serving = asyncio.create_task(worker_of(client, "ready", only).serve(stop))
        built.set()
        await until(client, lambda holders: True, "ready")
        stop.set()
        await serving
