"""The broker's part of a live session: commands in order, bounded, and nothing left at the end."""

from __future__ import annotations

import pytest

from server.broker import messages, redis
from server.broker.client import give_up
from server.errors import ServiceError
from server.protocol import AnimationOptions
from tests.server.broker.test_broker import fragment, halves, keys, started, url

__all__ = ["url"]  # the fixture: Valkey, and Redis if there

pytestmark = pytest.mark.anyio

COMMANDS: list[messages.LiveCommand] = [
    messages.Sound(data=b"\x00\xff" * 100),
    messages.Update(steps=3, audio_cfg=0.0),
    messages.Interrupt(),
    messages.Sound(data=b""),
    messages.End(),
]


def wish() -> messages.LiveRequest:
    return messages.LiveRequest(
        options=AnimationOptions(), model="fake", seed=7, sample_rate=16_000, idle=True
    )


async def test_commands_come_in_order_from_before_the_claim_on_and_are_gone(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        assert await client.tell(job_id, COMMANDS[0])
        claim = await work.claim()
        assert claim is not None and claim.request == wish()
        for command in COMMANDS[1:]:
            assert await client.tell(job_id, command)
        listener = work.commands(job_id)
        heard = [await anext(listener) for _ in range(len(COMMANDS) + 1)]
        assert sorted(heard, key=lambda c: isinstance(c, messages.Read))[:-1] == COMMANDS
        assert await client.tell(job_id, messages.End())
        await anext(listener)  # so all before it have been dealt with
        assert await client.connection.redis.xlen(redis.in_key(job_id)) == 1


async def test_nothing_of_an_ended_session_stays(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        claim = await work.claim()
        assert claim is not None
        await work.publish(job_id, started())
        await work.publish(job_id, messages.Interrupted(at_s=0.0, heard=0))
        await work.publish(job_id, fragment(0))
        await give_up(client, job_id, live=True)
        assert not await work.publish(job_id, fragment(1))
        assert not await client.tell(job_id, messages.End())
        await work.end(job_id, messages.Done(frames=8, duration_s=0.32))
        await work.release(claim)
        assert await keys(client) == set()


async def test_a_session_that_was_given_up_before_its_claim_leaves_nothing(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), {"portrait": b"picture"})
        await client.tell(job_id, messages.Sound(data=b"12"))
        await give_up(client, job_id, live=True)
        assert await work.claim() is None
        assert await client.connection.redis.ttl(redis.in_key(job_id)) <= 600


async def test_live_sessions_are_refused_before_offline_jobs_are(url: str) -> None:
    async with halves(url, max_jobs=4) as (client, _):
        assert await client.live_places(2) == 2  # one worker
        for _ in range(2):
            await client.submit(wish(), {}, places=2)
        with pytest.raises(ServiceError, match="all 2 places") as caught:
            await client.submit(wish(), {}, places=2)
        assert caught.value.code == "busy"
        await client.submit(messages.AvatarRequest(model="fake", avatar_id="a"), {})
