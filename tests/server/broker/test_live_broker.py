"""Live sessions in the broker: commands are ordered and bounded, and no keys stay."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.api.protocol import AnimationOptions
from server.broker import attachment, messages, redis
from server.broker.attachment import InputPosition, KeptFragments, kept_bytes
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


@pytest.mark.parametrize("pcm", [b"", b"\x01\x80" * 640])
def test_a_fragment_keeps_its_sound_apart(pcm: bytes) -> None:
    sent = fragment(3).model_copy(update={"data": b"moof and mdat", "pcm": pcm})
    text, blob = messages.pack_event(sent)
    read = messages.unpack_event(text, blob)
    assert isinstance(read, messages.JobFragment)
    assert (read.data, read.pcm) == (b"moof and mdat", pcm)
    older = text.replace(f',"pcm_bytes":{len(pcm)}'.encode(), b"")
    assert older != text
    read = messages.unpack_event(older, b"moof and mdat")  # of a worker that knows no PCM
    assert isinstance(read, messages.JobFragment) and (read.data, read.pcm) == (blob[:13], b"")


def live_request() -> messages.LiveRequest:
    return messages.LiveRequest(
        options=AnimationOptions(), model="fake", seed=7, sample_rate=16_000, idle=True
    )


async def test_commands_are_ordered_and_kept_until_a_snapshot_includes_them(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(live_request(), {"portrait": b"picture"})
        assert await producer.send_command(job_id, 1, COMMANDS[0])
        claim = await claim_next(consumer, "live")
        assert claim.request == live_request().model_copy(update={"reader": job_id})
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


async def test_a_later_connection_has_the_session(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(live_request(), {})
        assert await attachment.attach(producer.connection, "0" * 24) is None
        first = await attachment.attach(producer.connection, job_id)
        assert first is not None and first.commands == 0
        position = InputPosition(200, 0, False)
        assert await producer.send_command(job_id, 1, COMMANDS[0], by=first, position=position)
        second = await attachment.attach(producer.connection, job_id)
        assert second is not None and (second.commands, second.position) == (1, position)
        with pytest.raises(ServiceError, match="another connection"):
            await producer.send_command(job_id, 2, COMMANDS[0], by=first)
        assert await producer.send_command(job_id, 2, COMMANDS[1], by=second)
        assert not await attachment.stay_attached(producer.connection, first)
        assert await attachment.stay_attached(producer.connection, second)
        await producer.connection.redis.hincrby(redis.job_key(job_id), "connection", -1)
        assert await attachment.stay_attached(producer.connection, second)  # a fail-over lost it
        assert not await attachment.stay_attached(producer.connection, first)
        claim = await claim_next(consumer, "live")
        assert await consumer.has_reader(claim)
        ttl_s = await producer.connection.redis.ttl(redis.reader_key(job_id))
        assert 0 < ttl_s <= 7  # with the worker's patience, ten seconds


async def test_sent_fragments_stay_for_a_while(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(live_request(), {})
        claim = await claim_next(consumer, "live")
        size = len(fragment(0).data)
        kept = KeptFragments(3 * size)
        events = producer.follow(job_id, consume=True, kept=kept)
        await anext(events)
        for n in range(6):
            await publish(consumer, claim, n + 1, event=fragment(n))
            assert await anext(events) == fragment(n)
        await events.aclose()
        again = producer.follow(job_id, consume=True, kept=KeptFragments(0), resumed=True)
        found = [await anext(again) for _ in range(5)]
        assert [e.index for e in found if isinstance(e, messages.JobFragment)] == [2, 3, 4, 5]


def test_sent_fragments_stay_no_longer_than_a_dead_connection_goes_unnoticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 1.0, 20.5, 60.0])
    monkeypatch.setattr("server.broker.attachment.time.monotonic", lambda: next(clock))
    kept = KeptFragments(1000)
    assert [kept.sent(b"%d" % n, 10) for n in range(4)] == [[], [], [b"0"], [b"1", b"2"]]
    assert kept_bytes(256 << 20, 32) == 2 << 20 and kept_bytes(16 << 20, 256) == 16 << 10


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
    monkeypatch.setattr("server.broker.follow._BLOCK_MS", 50)
    monkeypatch.setattr("server.broker.follow._UNCLAIMED_S", 0.2)
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
    monkeypatch.setattr("server.broker.follow._BLOCK_MS", 50)
    monkeypatch.setattr("server.broker.follow._UNCLAIMED_S", 0.1)
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
            await mine.submit(animate_request(), {})
            claim = await claim_next(consumer)
            assert await consumer.has_reader(claim)
            await mine.submit(animate_request(keep=True), {})
            kept = await claim_next(consumer)
            ttl_s = await producer.connection.redis.ttl(redis.reader_key(name))
            assert 0 < ttl_s <= 5  # of a process that is killed
        assert not await consumer.has_reader(claim)
        assert await consumer.has_reader(kept)
