"""Both halves of the broker over real servers: the bundled Valkey, and Debian's Redis if there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.api.protocol import AnimationOptions, AvatarView, FaceView, ModelView
from server.broker import messages, redis
from server.broker.consumer import LEASE_S, START, Claim, JobConsumer, Retention
from server.broker.embedded import embedded_server, valkey_program
from server.broker.liveness import deregister, release_leases
from server.broker.producer import JobProducer
from server.errors import ServiceError

pytestmark = pytest.mark.anyio

REDIS = shutil.which("redis-server")
MODEL = ModelView(
    name="fake", latent_space="fake", steps=6, nfe_per_window=6, fps=25, size=512,
    licence="Apache-2.0", audio_cfg=3.0, reference_cfg=2.0,
)  # fmt: skip
PARTS = {"portrait": b"picture", "audio": b"sound"}


@pytest.fixture(scope="module", params=["valkey", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "redis" and REDIS is None:
        pytest.skip("redis-server is not installed")
    program = valkey_program() if request.param == "valkey" else Path(REDIS or "")
    with embedded_server(program) as server:
        yield server.url


@asynccontextmanager
async def halves(url: str, max_jobs: int = 4) -> AsyncIterator[tuple[JobProducer, JobConsumer]]:
    async with redis.connect(url) as connection:
        await connection.redis.flushall()
        work = worker(connection, "w1")
        await work.join()
        await work.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        yield JobProducer(connection, max_jobs, 100), work


def worker(connection: redis.Connection, name: str) -> JobConsumer:
    return JobConsumer(
        connection, name, Retention(job_ttl_s=100, avatar_ttl_s=100, max_avatars=2, max_videos=2)
    )


def wish(*, keep: bool = False) -> messages.AnimateRequest:
    return messages.AnimateRequest(options=AnimationOptions(), model="fake", seed=7, keep=keep)


def started() -> messages.Started:
    return messages.Started(
        seed=7, width=2, height=2, fps=25, codecs="x", total_s=2.0, data=b"init"
    )


def fragment(index: int) -> messages.Fragment:
    return messages.Fragment(
        index=index, first_frame=8 * index, frames=8, start_s=0.32 * index, duration_s=0.32,
        data=bytes([index]) * 1000,
    )  # fmt: skip


async def taken(work: JobConsumer, kind: str = "animate") -> Claim:
    claim = await work.claim(kind)
    assert claim is not None
    return claim


async def say(work: JobConsumer, claim: Claim, number: int, event: messages.Progress) -> bool:
    return await work.publish(
        claim, number, event, snapshot=b"state %d" % number, last_command=START
    )


async def told(work: JobConsumer, job_id: str, after: str = START) -> list[messages.AnyCommand]:
    """The commands that wait now."""
    return [command for _, command in await anext(work.commands(job_id, after))]


async def all_of(client: JobProducer, job_id: str, *, consume: bool) -> list[messages.AnyEvent]:
    return [event async for event in client.follow(job_id, consume=consume)]


async def keys(client: JobProducer) -> set[str]:
    found = {key.decode() for key in await client.connection.redis.keys("*")}
    queues = {redis.queue_key(kind) for kind in redis.QUEUES}
    return found - queues - {redis.WORKERS, redis.worker_key("w1")}


async def test_a_job_reaches_a_worker_and_its_video_the_reader(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        assert (claim.job_id, claim.request, claim.snapshot) == (job_id, wish(), None)
        assert await work.part(job_id, "audio") == b"sound"
        sent = [started(), fragment(0), fragment(1)]
        for number, event in enumerate(sent):
            assert await say(work, claim, number + 1, event)
        done = messages.Done(frames=16, duration_s=0.64)
        await work.end(claim, done)
        got = await all_of(client, job_id, consume=True)
        assert got == [messages.Queued(), *sent, done]
        await client.abandon(job_id)
        view = await client.view(job_id)
        assert view is not None
        assert (view.status, view.progress, view.frames) == ("done", 1.0, 16)
        assert await keys(client) == {redis.job_key(job_id)}
        assert await client.connection.redis.ttl(redis.job_key(job_id)) > 0


async def test_the_worker_receives_acknowledgements(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        await say(work, claim, 1, fragment(0))
        await say(work, claim, 2, fragment(1))
        events = client.follow(job_id, consume=True)
        for _ in range(3):
            await anext(events)
        assert await told(work, job_id) == [messages.Ack(index=-1), messages.Ack(index=0)]
        assert await client.connection.redis.xlen(redis.out_key(job_id)) == 2


async def test_a_reader_waits_for_a_running_job(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        reading = asyncio.create_task(all_of(client, job_id, consume=True))
        claim = await taken(work)
        await say(work, claim, 1, started())
        await work.end(claim, messages.Failed(code="empty_audio", detail="nothing"))
        assert (await asyncio.wait_for(reading, 10))[-1] == messages.Failed(
            code="empty_audio", detail="nothing"
        )


async def test_a_kept_video_can_be_read_again_until_evicted(url: str) -> None:
    async with halves(url) as (client, work):
        ids = []
        for _ in range(3):
            ids.append(await client.submit(wish(keep=True), PARTS))
            claim = await taken(work)
            await say(work, claim, 1, started())
            await say(work, claim, 2, fragment(0))
            await work.end(claim, messages.Done(frames=8, duration_s=0.32))
        assert [await client.keeps_video(job_id) for job_id in ids] == [False, True, True]
        once = await all_of(client, ids[2], consume=False)
        assert fragment(0) in once
        assert once == await all_of(client, ids[2], consume=False)


async def test_a_queued_job_can_be_cancelled_and_is_never_claimed(url: str) -> None:
    async with halves(url, max_jobs=1) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        assert await client.cancel(job_id)
        assert not await client.cancel(job_id)
        assert isinstance((await all_of(client, job_id, consume=True))[-1], messages.Cancelled)
        await client.submit(wish(), PARTS)  # its place is free
        claim = await taken(work)
        assert claim.job_id != job_id


async def test_a_worker_notices_a_cancelled_job(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        assert await work.renew([claim]) == [True]
        await client.abandon(job_id)
        assert await work.renew([claim]) == [False]
        assert not await say(work, claim, 1, fragment(0))
        await work.end(claim, messages.Done(frames=0, duration_s=0.0))
        view = await client.view(job_id)
        assert view is not None and view.status == "cancelled"
        assert await keys(client) == {redis.job_key(job_id)}


async def test_a_full_queue_is_busy(url: str) -> None:
    async with halves(url, max_jobs=2) as (client, work):
        first = await client.submit(wish(), PARTS)
        await client.submit(wish(), PARTS)
        with pytest.raises(ServiceError) as caught:
            await client.submit(wish(), PARTS)
        assert caught.value.code == "busy"
        assert len(await keys(client)) == 2 * 4  # nothing of the refused one
        claim = await taken(work)
        assert claim.job_id == first
        await work.end(claim, messages.Done(frames=0, duration_s=0.0))
        await client.submit(wish(), PARTS)


async def test_a_full_memory_evicts_and_then_is_busy(url: str) -> None:
    async with halves(url) as (client, work):
        kept = await client.submit(wish(keep=True), PARTS)
        claim = await taken(work)
        await say(work, claim, 1, fragment(0).model_copy(update={"data": bytes(4 << 20)}))
        await work.end(claim, messages.Done(frames=8, duration_s=0.32))
        await work.save_avatar(avatar("a"), b"a")
        running = await client.submit(wish(), PARTS)
        claim = await taken(work)
        used = (await client.connection.redis.info("memory"))["used_memory"]
        await client.connection.redis.config_set("maxmemory", used - (1 << 20))
        try:
            assert await say(work, claim, 1, fragment(0))  # stored videos are evicted
            assert not await client.keeps_video(kept)
            assert await client.avatar("a") is not None
            await client.connection.redis.config_set("maxmemory", 1)
            for full in (client.submit(wish(), PARTS), say(work, claim, 2, fragment(1))):
                with pytest.raises(ServiceError) as caught:
                    await full
                assert caught.value.code == "busy"
            assert await client.avatar("a") is None
            # A full server still has workers, and jobs can change hands.
            await work.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
            assert await work.renew([claim]) == [True]
            await work.release([claim])
            again = await work.reclaim("animate", idle=True)
            assert again is not None
            claim = again
            # Memory can still be freed.
            await work.end(claim, messages.Failed(code="busy", detail="full"))
            await client.forget(running)
        finally:
            await client.connection.redis.config_set("maxmemory", 0)
        assert await keys(client) == {redis.job_key(running), redis.OWNERS}


async def test_without_a_worker_jobs_are_rejected(url: str) -> None:
    async with halves(url) as (client, work):
        await work.leave()
        with pytest.raises(ServiceError) as caught:
            await client.submit(wish(), PARTS)
        assert caught.value.code == "no_worker"
        assert (await client.models()).models == []


async def test_another_worker_resumes_a_dead_ones_job(url: str) -> None:
    async with halves(url) as (client, work):
        other = worker(client.connection, "w2")
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        await say(work, claim, 1, started())
        await say(work, claim, 2, fragment(0))
        assert await other.reclaim("animate", idle=True) is None  # the lease is young
        await release_leases(client.connection, "w1")
        again = await other.reclaim("animate", idle=True)
        assert again is not None
        assert (again.job_id, again.request, again.events) == (job_id, wish(), 2)
        assert (again.snapshot, again.attempts) == (b"state 2", 1)
        assert await other.reclaim("animate", idle=True) is None
        assert await other.part(job_id, "audio") == b"sound"
        # A worker that was presumed dead can do no harm.
        assert await work.renew([claim]) == [False]
        assert not await say(work, claim, 3, fragment(1))
        await work.end(claim, messages.Failed(code="internal_error", detail="late"))
        assert await say(other, again, 3, fragment(1))
        done = messages.Done(frames=16, duration_s=0.64)
        await other.end(again, done)
        got = await all_of(client, job_id, consume=True)
        assert got == [messages.Queued(), started(), fragment(0), fragment(1), done]


async def test_a_lease_expires_unless_renewed(url: str) -> None:
    async with halves(url) as (client, work):
        other = worker(client.connection, "w2")
        await client.submit(wish(), PARTS)
        claim = await taken(work)
        for _ in range(5):
            await asyncio.sleep(LEASE_S / 3)
            assert await work.renew([claim]) == [True]
            assert await other.reclaim("animate", idle=True) is None
        await asyncio.sleep(LEASE_S * 1.1)
        assert await other.reclaim("animate", idle=True) is not None


async def test_a_released_job_is_reclaimed_at_once(url: str) -> None:
    async with halves(url) as (client, work):
        other = worker(client.connection, "w2")
        await client.submit(wish(), PARTS)
        claim = await taken(work)
        await work.release([claim])
        again = await other.reclaim("animate", idle=True)
        assert again is not None and again.job_id == claim.job_id
        await work.release([claim])  # which it no longer holds
        assert await work.reclaim("animate", idle=True) is None


async def test_attempts_without_progress_are_counted(url: str) -> None:
    async with halves(url) as (client, work):
        await client.submit(wish(), PARTS)
        claim: Claim | None = await taken(work)
        for tries in (1, 2, 3):
            assert claim is not None and (claim.attempts, claim.suspected_poison) == (
                tries,
                tries > 1,
            )
            await release_leases(client.connection, "w1")
            assert await work.reclaim("animate", idle=False) is None  # only for an idle worker
            claim = await work.reclaim("animate", idle=True)
        assert claim is not None
        await say(work, claim, 1, started())
        await work.release([claim])
        claim = await work.reclaim("animate", idle=True)
        assert claim is not None and claim.attempts == 1


async def test_suspected_poison_waits_without_blocking_other_jobs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with halves(url) as (client, work):
        suspect = await client.submit(wish(), PARTS)
        await taken(work)
        await release_leases(client.connection, "w1")
        await work.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        innocent = await client.submit(wish(), PARTS)
        other = await taken(work)
        assert other.job_id == innocent
        await say(work, other, 1, started())
        await release_leases(client.connection, "w1")
        claim = await work.reclaim("animate", idle=False)
        assert claim is not None and claim.job_id == innocent
        assert await work.reclaim("animate", idle=False) is None
        monkeypatch.setattr("server.broker.consumer.QUARANTINE_S", 0.0)
        claim = await work.reclaim("animate", idle=False)
        assert claim is not None and (claim.job_id, claim.suspected_poison) == (suspect, True)


async def test_a_lease_timeout_of_a_live_worker_is_not_an_attempt(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.broker.consumer.LEASE_S", 0.01)
    async with halves(url) as (client, work):

        async def lapsed(*, lives: bool = True) -> Claim:
            if lives:
                await work.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
            while (claim := await work.reclaim("animate", idle=True)) is None:
                await asyncio.sleep(0.01)
            return claim

        await client.submit(wish(), PARTS)
        claim = await taken(work)
        for late in range(1, 8):
            claim = await lapsed()
            assert (claim.attempts, claim.lease_timeouts) == (1, late)
        await say(work, claim, 1, started())
        claim = await lapsed()
        assert (claim.attempts, claim.lease_timeouts) == (0, 1)
        await deregister(client.connection, "w1")
        claim = await lapsed(lives=False)
        assert (claim.attempts, claim.lease_timeouts) == (1, 1)


async def test_a_release_is_not_an_attempt(url: str) -> None:
    async with halves(url) as (client, work):
        await client.submit(wish(), PARTS)
        claim: Claim | None = await taken(work)
        for _ in range(10):
            assert claim is not None and claim.attempts == 1
            await work.release([claim])
            claim = await work.reclaim("animate", idle=True)


async def test_repeated_steps_take_effect_once(url: str) -> None:
    """A client retries when a reply is lost."""
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        for _ in range(2):
            assert await say(work, claim, 1, started())
            assert await client.send_command(job_id, 1, messages.End())
        assert await client.connection.redis.xlen(redis.out_key(job_id)) == 2
        assert await told(work, job_id) == [messages.Ack(index=-1), messages.End()]
        for _ in range(2):
            await work.end(claim, messages.Done(frames=0, duration_s=0.0))
        assert await client.connection.redis.xlen(redis.out_key(job_id)) == 3


async def test_workers_rejoin_a_server_that_lost_its_data(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        await client.connection.redis.flushall()
        assert await all_of(client, job_id, consume=True) == []
        assert await work.renew([claim]) == [False]
        assert not await say(work, claim, 1, started())
        assert await work.claim("animate") is None
        assert await work.reclaim("live", idle=True) is None
        await work.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        job_id = await client.submit(wish(), PARTS)
        assert (await taken(work)).job_id == job_id


async def test_names_of_idle_workers_are_removed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.broker.consumer._CONSUMER_TTL_MS", 0)
    async with halves(url) as (client, work):
        await client.submit(wish(), PARTS)
        await taken(work)
        for n in range(3):
            await worker(client.connection, f"gone{n}").claim("animate")
        await asyncio.sleep(0.01)
        await worker(client.connection, "w2").join()
        queue = redis.queue_key("animate")
        known = await client.connection.redis.xinfo_consumers(queue, redis.GROUP)
        assert [consumer["name"] for consumer in known] == [b"w1"]  # it holds a job


async def test_the_least_recently_used_avatar_is_evicted(url: str) -> None:
    async with halves(url) as (client, work):
        for name in ("a", "b"):
            await work.save_avatar(avatar(name), name.encode())
        assert await work.load_avatar("a", "j1") == b"a"
        await work.save_avatar(avatar("c"), b"c")
        assert await client.avatar("a") == avatar("a")
        assert await client.avatar("b") is None
        assert await client.delete_avatar("a")
        assert not await client.delete_avatar("a")
        assert await work.load_avatar("a", "j2") is None
        assert await work.load_avatar("a", "j1") == b"a"  # for a job that continues


def avatar(name: str) -> AvatarView:
    return AvatarView(
        avatar_id=name, width=4, height=4, face=FaceView(box=(0, 0, 4, 4), confidence=1.0)
    )
