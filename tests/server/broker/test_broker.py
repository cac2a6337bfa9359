"""Producer and consumer over real servers: the bundled Valkey, and Debian's Redis if there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.api.protocol import AnimationOptions, AvatarView, FaceView, ModelView
from server.api.video import first_event
from server.broker import liveness, messages, redis
from server.broker.amount import Amount
from server.broker.consumer import START, JobConsumer
from server.broker.embedded import embedded_server, valkey_program
from server.broker.leases import LEASE_S, Claim
from server.broker.liveness import deregister, release_leases
from server.broker.producer import JobProducer
from server.broker.reservations import Retention
from server.errors import ServiceError
from server.tasks import cancel_and_wait

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
async def connected(url: str, max_jobs: int = 4) -> AsyncIterator[tuple[JobProducer, JobConsumer]]:
    async with redis.connect(url) as connection:
        await connection.redis.flushall()
        consumer = worker(connection, "w1")
        await consumer.join()
        await consumer.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        yield JobProducer(connection, max_jobs, 100), consumer


def worker(connection: redis.Connection, name: str) -> JobConsumer:
    return JobConsumer(
        connection, name, Retention(job_ttl_s=100, avatar_ttl_s=100, max_avatars=2, max_videos=2)
    )


def animate_request(*, keep: bool = False) -> messages.AnimateRequest:
    return messages.AnimateRequest(
        options=AnimationOptions(), model="fake", seed=7, keep=keep, uploads=Amount(12)
    )


def started() -> messages.Started:
    return messages.Started(
        seed=7, width=2, height=2, fps=25, codecs="x", total_s=2.0, data=b"init"
    )


def fragment(index: int) -> messages.JobFragment:
    return messages.JobFragment(
        index=index, first_frame=8 * index, frames=8, start_s=0.32 * index, duration_s=0.32,
        data=bytes([index]) * 1000,
    )  # fmt: skip


async def claim_next(consumer: JobConsumer, kind: str = "animate") -> Claim:
    claim = await consumer.claim(kind)
    assert claim is not None
    return claim


async def publish(
    consumer: JobConsumer, claim: Claim, number: int, *, event: messages.Progress
) -> bool:
    return await consumer.publish(
        claim, number, event, snapshot=b"state %d" % number, last_command=START
    )


async def pending_commands(
    consumer: JobConsumer, job_id: str, after: str = START
) -> list[messages.AnyCommand]:
    """The pending commands after the entry ``after``."""
    return [command for _, command in await anext(consumer.commands(job_id, after))]


async def read_all(producer: JobProducer, job_id: str, *, consume: bool) -> list[messages.AnyEvent]:
    return [event async for event in producer.follow(job_id, consume=consume)]


async def keys(producer: JobProducer) -> set[str]:
    found = {key.decode() for key in await producer.connection.redis.keys("*")}
    queues = {redis.queue_key(kind) for kind in redis.QUEUES}
    return found - queues - {redis.WORKERS, redis.worker_key("w1")}


async def test_a_job_reaches_a_worker_and_its_video_the_reader(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        assert (claim.job_id, claim.request, claim.snapshot) == (job_id, animate_request(), None)
        assert await consumer.part(job_id, "audio") == b"sound"
        sent = [started(), fragment(0), fragment(1)]
        for number, event in enumerate(sent):
            assert await publish(consumer, claim, number + 1, event=event)
        done = messages.JobDone(frames=16, duration_s=0.64)
        await consumer.end(claim, done)
        events = await read_all(producer, job_id, consume=True)
        assert events == [messages.Queued(), *sent, done]
        await producer.abandon(job_id)
        view = await producer.view(job_id)
        assert view is not None
        assert (view.status, view.progress, view.frames) == ("done", 1.0, 16)
        assert await keys(producer) == {redis.job_key(job_id)}
        assert await producer.connection.redis.ttl(redis.job_key(job_id)) > 0


async def test_the_worker_receives_acknowledgements(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        await publish(consumer, claim, 1, event=fragment(0))
        await publish(consumer, claim, 2, event=fragment(1))
        events = producer.follow(job_id, consume=True)
        for _ in range(3):
            await anext(events)
        assert await pending_commands(consumer, job_id) == [
            messages.Ack(index=-1),
            messages.Ack(index=0),
        ]
        assert await producer.connection.redis.xlen(redis.out_key(job_id)) == 2


async def test_a_reader_waits_for_a_running_job(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        reading = asyncio.create_task(read_all(producer, job_id, consume=True))
        claim = await claim_next(consumer)
        await publish(consumer, claim, 1, event=started())
        await consumer.end(claim, messages.Failed(code="empty_audio", detail="nothing"))
        assert (await asyncio.wait_for(reading, 10))[-1] == messages.Failed(
            code="empty_audio", detail="nothing"
        )


def test_options_at_their_defaults_are_not_sent_so_older_workers_take_the_job() -> None:
    options = AnimationOptions(size=256)
    request = messages.AnimateRequest(options=options, model="m", seed=1)
    assert request.model_dump()["options"] == {"size": 256}
    assert messages.AnimateRequest.model_validate_json(request.model_dump_json()).options == options


async def test_an_error_code_of_a_newer_worker_is_an_internal_error(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        await consumer.end(claim, messages.Failed(code="too_loud", detail="it hurts"))
        view = await producer.view(job_id)
        assert view is not None and view.error is not None
        assert view.error.code == "internal_error"
        assert view.error.detail == "too_loud: it hurts"
        with pytest.raises(ServiceError, match="too_loud: it hurts") as caught:
            await first_event(producer.follow(job_id, consume=True))
        assert caught.value.code == "internal_error"


async def test_a_kept_video_can_be_read_again_until_evicted(url: str) -> None:
    async with connected(url) as (producer, consumer):
        ids = []
        for _ in range(3):
            ids.append(await producer.submit(animate_request(keep=True), PARTS))
            claim = await claim_next(consumer)
            await publish(consumer, claim, 1, event=started())
            await publish(consumer, claim, 2, event=fragment(0))
            await consumer.end(claim, messages.JobDone(frames=8, duration_s=0.32))
        assert [await producer.keeps_video(job_id) for job_id in ids] == [False, True, True]
        once = await read_all(producer, ids[2], consume=False)
        assert fragment(0) in once
        assert once == await read_all(producer, ids[2], consume=False)


async def test_a_queued_job_can_be_cancelled_and_is_never_claimed(url: str) -> None:
    async with connected(url, max_jobs=1) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        assert await producer.cancel(job_id)
        assert not await producer.cancel(job_id)
        assert isinstance((await read_all(producer, job_id, consume=True))[-1], messages.Cancelled)
        await producer.submit(animate_request(), PARTS)  # its place is free
        claim = await claim_next(consumer)
        assert claim.job_id != job_id


async def test_a_worker_notices_a_cancelled_job(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        assert await consumer.renew([claim]) == [True]
        await producer.abandon(job_id)
        assert await consumer.renew([claim]) == [False]
        assert not await publish(consumer, claim, 1, event=fragment(0))
        await consumer.end(claim, messages.JobDone(frames=0, duration_s=0.0))
        view = await producer.view(job_id)
        assert view is not None and view.status == "cancelled"
        assert await keys(producer) == {redis.job_key(job_id)}


async def test_a_full_queue_is_busy(url: str) -> None:
    async with connected(url, max_jobs=2) as (producer, consumer):
        first = await producer.submit(animate_request(), PARTS)
        await producer.submit(animate_request(), PARTS)
        with pytest.raises(ServiceError) as caught:
            await producer.submit(animate_request(), PARTS)
        assert caught.value.code == "busy"
        assert len(await keys(producer)) == 2 * 4 + 2  # nothing of the refused one
        claim = await claim_next(consumer)
        assert claim.job_id == first
        await consumer.end(claim, messages.JobDone(frames=0, duration_s=0.0))
        await producer.submit(animate_request(), PARTS)


async def test_a_full_memory_evicts_and_then_is_busy(url: str) -> None:
    async with connected(url) as (producer, consumer):
        kept = await producer.submit(animate_request(keep=True), PARTS)
        claim = await claim_next(consumer)
        await publish(
            consumer, claim, 1, event=fragment(0).model_copy(update={"data": bytes(4 << 20)})
        )
        await consumer.end(claim, messages.JobDone(frames=8, duration_s=0.32))
        await consumer.save_avatar(avatar("a"), b"a")
        running = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        used = (await producer.connection.redis.info("memory"))["used_memory"]
        await producer.connection.redis.config_set("maxmemory", used - (1 << 20))
        try:
            assert await publish(consumer, claim, 1, event=fragment(0))  # stored videos are evicted
            assert not await producer.keeps_video(kept)
            assert await producer.avatar("a") is not None
            await producer.connection.redis.config_set("maxmemory", 1)
            for full in (
                producer.submit(animate_request(), PARTS),
                publish(consumer, claim, 2, event=fragment(1)),
            ):
                with pytest.raises(ServiceError) as caught:
                    await full
                assert caught.value.code == "busy"
            assert await producer.avatar("a") is None
            # A full server still has workers, and jobs can change hands.
            await consumer.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
            assert await consumer.renew([claim]) == [True]
            await consumer.release([claim])
            again = await consumer.reclaim("animate", idle=True)
            assert again is not None
            claim = again
            # Memory can still be freed.
            await consumer.end(claim, messages.Failed(code="busy", detail="full"))
            await producer.forget(running)
        finally:
            await producer.connection.redis.config_set("maxmemory", 0)
        assert await keys(producer) == {redis.job_key(running), redis.OWNERS}


async def test_what_workers_prepare_is_said_once(url: str) -> None:
    async with connected(url) as (producer, consumer):
        assert await producer.preparations() == []
        other = worker(producer.connection, "w2")
        for one in (consumer, other):
            building = messages.Heartbeat(models=[MODEL], live_places=2, detail="building it")
            await one.heartbeat(building)
        assert await producer.preparations() == ["building it"]


async def test_without_a_worker_jobs_are_rejected(url: str) -> None:
    async with connected(url) as (producer, consumer):
        await consumer.leave()
        with pytest.raises(ServiceError) as caught:
            await producer.submit(animate_request(), PARTS)
        assert caught.value.code == "no_worker"
        assert (await producer.models()).models == []


async def test_another_worker_resumes_a_dead_ones_job(url: str) -> None:
    async with connected(url) as (producer, consumer):
        other = worker(producer.connection, "w2")
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        await publish(consumer, claim, 1, event=started())
        await publish(consumer, claim, 2, event=fragment(0))
        assert await other.reclaim("animate", idle=True) is None  # the lease is young
        await release_leases(producer.connection, "w1")
        again = await other.reclaim("animate", idle=True)
        assert again is not None
        assert (again.job_id, again.request, again.events) == (job_id, animate_request(), 2)
        assert (again.snapshot, again.attempts) == (b"state 2", 1)
        assert await other.reclaim("animate", idle=True) is None
        assert await other.part(job_id, "audio") == b"sound"
        # A worker that was presumed dead can do no harm.
        assert await consumer.renew([claim]) == [False]
        assert not await publish(consumer, claim, 3, event=fragment(1))
        await consumer.end(claim, messages.Failed(code="internal_error", detail="late"))
        assert await publish(other, again, 3, event=fragment(1))
        done = messages.JobDone(frames=16, duration_s=0.64)
        await other.end(again, done)
        events = await read_all(producer, job_id, consume=True)
        assert events == [messages.Queued(), started(), fragment(0), fragment(1), done]


async def test_a_lease_expires_unless_renewed(url: str) -> None:
    async with connected(url) as (producer, consumer):
        other = worker(producer.connection, "w2")
        await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        for _ in range(5):
            await asyncio.sleep(LEASE_S / 3)
            assert await consumer.renew([claim]) == [True]
            assert await other.reclaim("animate", idle=True) is None
        await asyncio.sleep(LEASE_S * 1.1)
        assert await other.reclaim("animate", idle=True) is not None


async def test_a_released_job_is_reclaimed_at_once(url: str) -> None:
    async with connected(url) as (producer, consumer):
        other = worker(producer.connection, "w2")
        await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        await consumer.release([claim])
        again = await other.reclaim("animate", idle=True)
        assert again is not None and again.job_id == claim.job_id
        await consumer.release([claim])  # which it no longer holds
        assert await consumer.reclaim("animate", idle=True) is None


async def test_attempts_without_progress_are_counted(url: str) -> None:
    async with connected(url) as (producer, consumer):
        await producer.submit(animate_request(), PARTS)
        claim: Claim | None = await claim_next(consumer)
        for attempt in (1, 2, 3):
            assert claim is not None and (claim.attempts, claim.suspected_poison) == (
                attempt,
                attempt > 1,
            )
            await release_leases(producer.connection, "w1")
            assert await consumer.reclaim("animate", idle=False) is None  # only for an idle worker
            claim = await consumer.reclaim("animate", idle=True)
        assert claim is not None
        await publish(consumer, claim, 1, event=started())
        await consumer.release([claim])
        claim = await consumer.reclaim("animate", idle=True)
        assert claim is not None and claim.attempts == 1


async def test_suspected_poison_waits_without_blocking_other_jobs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(url) as (producer, consumer):
        poison = await producer.submit(animate_request(), PARTS)
        await claim_next(consumer)
        await release_leases(producer.connection, "w1")
        await consumer.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        healthy = await producer.submit(animate_request(), PARTS)
        other = await claim_next(consumer)
        assert other.job_id == healthy
        await publish(consumer, other, 1, event=started())
        await release_leases(producer.connection, "w1")
        claim = await consumer.reclaim("animate", idle=False)
        assert claim is not None and claim.job_id == healthy
        assert await consumer.reclaim("animate", idle=False) is None
        monkeypatch.setattr("server.broker.leases.QUARANTINE_S", 0.0)
        claim = await consumer.reclaim("animate", idle=False)
        assert claim is not None and (claim.job_id, claim.suspected_poison) == (poison, True)


async def test_a_lease_timeout_of_a_live_worker_is_not_an_attempt(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.broker.leases.LEASE_S", 0.01)
    async with connected(url) as (producer, consumer):

        async def reclaim_expired(*, alive: bool = True) -> Claim:
            if alive:
                await consumer.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
            while (claim := await consumer.reclaim("animate", idle=True)) is None:
                await asyncio.sleep(0.01)
            return claim

        await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        for timeouts in range(1, 8):
            claim = await reclaim_expired()
            assert (claim.attempts, claim.lease_timeouts) == (1, timeouts)
        await publish(consumer, claim, 1, event=started())
        claim = await reclaim_expired()
        assert (claim.attempts, claim.lease_timeouts) == (0, 1)
        await deregister(producer.connection, "w1")
        claim = await reclaim_expired(alive=False)
        assert (claim.attempts, claim.lease_timeouts) == (1, 1)


async def test_a_release_is_not_an_attempt(url: str) -> None:
    async with connected(url) as (producer, consumer):
        await producer.submit(animate_request(), PARTS)
        claim: Claim | None = await claim_next(consumer)
        for _ in range(10):
            assert claim is not None and claim.attempts == 1
            await consumer.release([claim])
            claim = await consumer.reclaim("animate", idle=True)


async def test_repeated_steps_take_effect_once(url: str) -> None:
    """A step is sent again when its reply is lost."""
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        for _ in range(2):
            assert await publish(consumer, claim, 1, event=started())
            assert await producer.send_command(job_id, 1, messages.End())
        assert await producer.connection.redis.xlen(redis.out_key(job_id)) == 2
        assert await pending_commands(consumer, job_id) == [messages.Ack(index=-1), messages.End()]
        for _ in range(2):
            await consumer.end(claim, messages.JobDone(frames=0, duration_s=0.0))
        assert await producer.connection.redis.xlen(redis.out_key(job_id)) == 3


async def test_workers_rejoin_a_server_that_lost_its_data(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        claim = await claim_next(consumer)
        await producer.connection.redis.flushall()
        assert await read_all(producer, job_id, consume=True) == []
        assert await consumer.renew([claim]) == [False]
        assert not await publish(consumer, claim, 1, event=started())
        assert await consumer.claim("animate") is None
        assert await consumer.reclaim("live", idle=True) is None
        await consumer.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        job_id = await producer.submit(animate_request(), PARTS)
        assert (await claim_next(consumer)).job_id == job_id


async def test_names_of_idle_workers_are_removed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.broker.leases._CONSUMER_TTL_MS", 0)
    async with connected(url) as (producer, consumer):
        await producer.submit(animate_request(), PARTS)
        await claim_next(consumer)
        for n in range(3):
            await worker(producer.connection, f"gone{n}").claim("animate")
        await asyncio.sleep(0.01)
        await worker(producer.connection, "w2").join()
        queue = redis.queue_key("animate")
        known = await producer.connection.redis.xinfo_consumers(queue, redis.GROUP)
        assert [entry["name"] for entry in known] == [b"w1"]  # it holds a job


async def test_the_least_recently_used_avatar_is_evicted(url: str) -> None:
    async with connected(url) as (producer, consumer):
        for name in ("a", "b"):
            await consumer.save_avatar(avatar(name), name.encode())
        assert await consumer.load_avatar("a", "j1") == b"a"
        await consumer.save_avatar(avatar("c"), b"c")
        assert await producer.avatar("a") == avatar("a")
        assert await producer.avatar("b") is None
        assert await producer.delete_avatar("a")
        assert not await producer.delete_avatar("a")
        assert await consumer.load_avatar("a", "j2") is None
        assert await consumer.load_avatar("a", "j1") == b"a"  # for a job that continues


def avatar(name: str) -> AvatarView:
    return AvatarView(
        avatar_id=name, width=4, height=4, face=FaceView(box=(0, 0, 4, 4), confidence=1.0)
    )


async def test_a_job_waits_for_a_worker_that_starts(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.broker.follow._NO_WORKER_S", 0.2)
    monkeypatch.setattr("server.broker.follow._BLOCK_MS", 100)
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        await consumer.leave()
        await liveness.announce_start(producer.connection, "w2")
        waiting = asyncio.create_task(ending(producer, job_id))
        done, _ = await asyncio.wait([waiting], timeout=1.0)
        assert not done
        await cancel_and_wait([waiting])  # redis-py may swallow one cancellation (Python 3.11)
        submitting = asyncio.create_task(producer.submit(animate_request(), PARTS))
        started = worker(producer.connection, "w2")
        await started.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        await started.started()
        assert await submitting
        assert await liveness.starting_workers(producer.connection) == {}
        await started.leave()
        assert (await ending(producer, job_id)).code == "no_worker"


async def test_a_start_that_takes_too_long_is_not_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("producer", "follow"):
        monkeypatch.setattr(f"server.broker.{module}.STARTING_S", 0.3)
    monkeypatch.setattr("server.broker.follow._BLOCK_MS", 100)
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), PARTS)
        await consumer.leave()
        await liveness.announce_start(producer.connection, "w2")
        assert (await ending(producer, job_id)).code == "no_worker"
        with pytest.raises(ServiceError, match="no worker is connected yet"):
            await producer.submit(animate_request(), PARTS)


async def ending(producer: JobProducer, job_id: str) -> messages.Failed:
    events = [event async for event in producer.follow(job_id, consume=True)]
    assert isinstance(events[-1], messages.Failed)
    return events[-1]
