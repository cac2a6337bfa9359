"""Live sessions in the broker: commands are ordered and bounded, and no keys stay."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.api.protocol import AnimationOptions
from server.broker import messages, redis
from server.broker.consumer import START
from server.broker.liveness import register_reader
from server.errors import ServiceError
from tests.server.broker.test_broker import (
    animate_request,
    claim_next,
    connected,
    fragment,
    keys,
    pending_commands,
    publish,
    read_all,
    started,
    url,
)

__all__ = ["url"]  # the fixture: Valkey, and Redis if there

pytestmark = pytest.mark.anyio

COMMANDS: list[messages.LiveCommand] = [
    messages.AudioChunk(data=b"\x00\xff" * 100),
    messages.Update(steps=3, audio_cfg=0.0),
    messages.Interrupt(),
    messages.AudioChunk(data=b""),
    messages.End(),
]


def live_request() -> messages.LiveRequest:
    return messages.LiveRequest(
        options=AnimationOptions(), model="fake", seed=7, sample_rate=16_000, idle=True
    )


async def test_commands_are_ordered_and_kept_until_a_snapshot_includes_them(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(live_request(), {"portrait": b"picture"})
        assert await producer.send_command(job_id, 1, COMMANDS[0])
        claim = await claim_next(consumer, "live")
        assert claim.request == live_request()
        listener = consumer.commands(job_id, START)
        received = await anext(listener)
        assert [command for _, command in received] == [COMMANDS[0], messages.Ack(index=-1)]
        for number, command in enumerate(COMMANDS[1:]):
            assert await producer.send_command(job_id, number + 2, command)
            received += await anext(listener)
        assert [command for _, command in received][2:] == COMMANDS[1:]
        assert await pending_commands(consumer, job_id) == [command for _, command in received]
        assert await consumer.publish(
            claim, 1, started(), snapshot=b"state", last_command=received[2][0]
        )
        assert await pending_commands(consumer, job_id) == COMMANDS[2:]
        assert await pending_commands(consumer, job_id, received[4][0]) == COMMANDS[4:]


async def test_too_many_commands_are_rejected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.broker.producer._MAX_COMMANDS", 3)
    async with connected(url) as (producer, _):
        job_id = await producer.submit(live_request(), {})
        for number in range(3):
            assert await producer.send_command(job_id, number + 1, messages.Interrupt())
        with pytest.raises(ServiceError) as caught:
            await producer.send_command(job_id, 4, messages.Interrupt())
        assert caught.value.code == "too_large"


async def test_an_ended_session_leaves_no_keys(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(live_request(), {"portrait": b"picture"})
        claim = await claim_next(consumer, "live")
        await publish(consumer, claim, 1, event=started())
        await publish(consumer, claim, 2, event=messages.JobInterrupted(at_s=0.0, consumed_bytes=0))
        await publish(consumer, claim, 3, event=fragment(0))
        await producer.abandon(job_id, live=True)
        assert not await publish(consumer, claim, 4, event=fragment(1))
        assert not await producer.send_command(job_id, 1, messages.End())
        await consumer.end(claim, messages.JobDone(frames=8, duration_s=0.32))
        assert await keys(producer) == set()


async def test_a_session_abandoned_before_its_claim_leaves_no_keys(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(live_request(), {"portrait": b"picture"})
        await producer.send_command(job_id, 1, messages.AudioChunk(data=b"12"))
        await producer.abandon(job_id, live=True)
        assert await consumer.claim("live") is None
        assert await keys(producer) == set()


async def test_each_kind_of_job_has_its_own_queue(url: str) -> None:
    async with connected(url, max_jobs=4) as (producer, _):
        for _ in range(2):  # the capacity that the worker reports
            await producer.submit(live_request(), {})
        with pytest.raises(ServiceError, match="all 2 places") as caught:
            await producer.submit(live_request(), {})
        assert caught.value.code == "busy"
        for _ in range(4):
            await producer.submit(animate_request(), {})
        with pytest.raises(ServiceError, match="all 4 places"):
            await producer.submit(animate_request(), {})
        await producer.submit(messages.AvatarRequest(model="fake", avatar_id="a"), {})


async def test_an_admitted_session_without_room_is_busy_soon(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.broker.producer._BLOCK_MS", 50)
    monkeypatch.setattr("server.broker.producer._UNCLAIMED_S", 0.2)
    async with connected(url, max_jobs=1) as (producer, consumer):
        job_id = await producer.submit(live_request(), {"portrait": b"picture"})
        queued, failed = await read_all(producer, job_id, consume=True)  # its worker claims nothing
        assert isinstance(queued, messages.Queued)
        assert isinstance(failed, messages.Failed) and failed.code == "busy"
        assert await consumer.part(job_id, "portrait") is None
        again = await producer.submit(live_request(), {})  # its place is free
        claim = await claim_next(consumer, "live")
        events = producer.follow(again, consume=True)
        assert isinstance(await anext(events), messages.Queued)
        await publish(consumer, claim, 1, event=started())
        assert await anext(events) == started()


async def test_an_offline_job_waits_for_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.broker.producer._BLOCK_MS", 50)
    monkeypatch.setattr("server.broker.producer._UNCLAIMED_S", 0.1)
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(), {})
        following = asyncio.create_task(read_all(producer, job_id, consume=True))
        ended, _ = await asyncio.wait([following], timeout=0.5)  # several polls
        assert not ended
        await consumer.end(await claim_next(consumer), messages.JobDone(frames=0, duration_s=0.0))
        assert isinstance((await following)[-1], messages.JobDone)


async def test_a_job_has_a_reader_while_its_api_process_lives(url: str) -> None:
    async with connected(url) as (producer, consumer):
        async with register_reader(producer.connection) as name:
            mine = replace(producer, reader=name)
            await mine.submit(live_request(), {})
            claim = await claim_next(consumer, "live")
            assert await consumer.has_reader(claim)
            await mine.submit(animate_request(keep=True), {})
            kept = await claim_next(consumer)
            ttl_s = await producer.connection.redis.ttl(redis.reader_key(name))
            assert 0 < ttl_s <= 5  # of a process that is killed
        assert not await consumer.has_reader(claim)
        assert await consumer.has_reader(kept)
