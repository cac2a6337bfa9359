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
    all_of,
    fragment,
    halves,
    keys,
    say,
    started,
    taken,
    told,
    url,
)
from tests.server.broker.test_broker import wish as offline

__all__ = ["url"]  # the fixture: Valkey, and Redis if there

pytestmark = pytest.mark.anyio

COMMANDS: list[messages.LiveCommand] = [
    messages.AudioChunk(data=b"\x00\xff" * 100),
    messages.Update(steps=3, audio_cfg=0.0),
    messages.Interrupt(),
    messages.AudioChunk(data=b""),
    messages.End(),
]


def wish() -> messages.LiveRequest:
    return messages.LiveRequest(
        options=AnimationOptions(), model="fake", seed=7, sample_rate=16_000, idle=True
    )


async def test_commands_are_ordered_and_kept_until_a_snapshot_includes_them(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        assert await client.send_command(job_id, 1, COMMANDS[0])
        claim = await taken(work, "live")
        assert claim.request == wish()
        listener = work.commands(job_id, START)
        heard = await anext(listener)
        assert [command for _, command in heard] == [COMMANDS[0], messages.Ack(index=-1)]
        for number, command in enumerate(COMMANDS[1:]):
            assert await client.send_command(job_id, number + 2, command)
            heard += await anext(listener)
        assert [command for _, command in heard][2:] == COMMANDS[1:]
        assert await told(work, job_id) == [command for _, command in heard]
        assert await work.publish(claim, 1, started(), snapshot=b"state", last_command=heard[2][0])
        assert await told(work, job_id) == COMMANDS[2:]
        assert await told(work, job_id, heard[4][0]) == COMMANDS[4:]


async def test_too_many_commands_are_rejected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.broker.producer._MAX_COMMANDS", 3)
    async with halves(url) as (client, _):
        job_id = await client.submit(wish(), {})
        for number in range(3):
            assert await client.send_command(job_id, number + 1, messages.Interrupt())
        with pytest.raises(ServiceError) as caught:
            await client.send_command(job_id, 4, messages.Interrupt())
        assert caught.value.code == "too_large"


async def test_an_ended_session_leaves_no_keys(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        claim = await taken(work, "live")
        await say(work, claim, 1, started())
        await say(work, claim, 2, messages.Interrupted(at_s=0.0, consumed_bytes=0))
        await say(work, claim, 3, fragment(0))
        await client.abandon(job_id, live=True)
        assert not await say(work, claim, 4, fragment(1))
        assert not await client.send_command(job_id, 1, messages.End())
        await work.end(claim, messages.Done(frames=8, duration_s=0.32))
        assert await keys(client) == set()


async def test_a_session_abandoned_before_its_claim_leaves_no_keys(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        await client.send_command(job_id, 1, messages.AudioChunk(data=b"12"))
        await client.abandon(job_id, live=True)
        assert await work.claim("live") is None
        assert await keys(client) == set()


async def test_each_kind_of_job_has_its_own_queue(url: str) -> None:
    async with halves(url, max_jobs=4) as (client, _):
        for _ in range(2):  # the capacity that the worker reports
            await client.submit(wish(), {})
        with pytest.raises(ServiceError, match="all 2 places") as caught:
            await client.submit(wish(), {})
        assert caught.value.code == "busy"
        for _ in range(4):
            await client.submit(offline(), {})
        with pytest.raises(ServiceError, match="all 4 places"):
            await client.submit(offline(), {})
        await client.submit(messages.AvatarRequest(model="fake", avatar_id="a"), {})


async def test_an_admitted_session_without_room_is_busy_soon(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.broker.producer._BLOCK_MS", 50)
    monkeypatch.setattr("server.broker.producer._UNCLAIMED_S", 0.2)
    async with halves(url, max_jobs=1) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        queued, failed = await all_of(client, job_id, consume=True)  # its worker claims nothing
        assert isinstance(queued, messages.Queued)
        assert isinstance(failed, messages.Failed) and failed.code == "busy"
        assert await work.part(job_id, "portrait") is None
        again = await client.submit(wish(), {})  # its place is free
        claim = await taken(work, "live")
        events = client.follow(again, consume=True)
        assert isinstance(await anext(events), messages.Queued)
        await say(work, claim, 1, started())
        assert await anext(events) == started()


async def test_an_offline_job_waits_for_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.broker.producer._BLOCK_MS", 50)
    monkeypatch.setattr("server.broker.producer._UNCLAIMED_S", 0.1)
    async with halves(url) as (client, work):
        job_id = await client.submit(offline(), {})
        following = asyncio.create_task(all_of(client, job_id, consume=True))
        ended, _ = await asyncio.wait([following], timeout=0.5)  # several polls
        assert not ended
        await work.end(await taken(work), messages.Done(frames=0, duration_s=0.0))
        assert isinstance((await following)[-1], messages.Done)


async def test_a_job_has_a_reader_while_its_api_process_lives(url: str) -> None:
    async with halves(url) as (client, work):
        async with register_reader(client.connection) as name:
            mine = replace(client, reader=name)
            await mine.submit(wish(), {})
            claim = await taken(work, "live")
            assert await work.has_reader(claim)
            await mine.submit(offline(keep=True), {})
            kept = await taken(work)
            ttl_s = await client.connection.redis.ttl(redis.reader_key(name))
            assert 0 < ttl_s <= 5  # of a process that is killed
        assert not await work.has_reader(claim)
        assert await work.has_reader(kept)
