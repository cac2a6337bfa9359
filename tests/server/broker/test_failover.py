"""What a replica that becomes the primary may lack: played by undoing the last steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from server.broker import messages, redis
from server.broker.client import open_client, without_password
from server.broker.consumer import START, JobConsumer
from server.broker.embedded import embedded_server, valkey_program
from server.broker.leases import Claim
from server.errors import ServiceError
from tests.server.broker.test_broker import PARTS, animate_request, connected, fragment

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded_server(valkey_program()) as server:
        yield server.url


async def publish(consumer: JobConsumer, claim: Claim, number: int) -> bool:
    event = fragment(number - 1)
    return await consumer.publish(claim, number, event, snapshot=b"", last_command=START)


async def claimed(consumer: JobConsumer) -> Claim:
    claim = await consumer.claim("animate")
    assert claim is not None
    return claim


async def lose_last_event(consumer: JobConsumer, claim: Claim) -> None:
    client, out = consumer.connection.redis, redis.out_key(claim.job_id)
    [(entry, _)] = await client.xrevrange(out, count=1)
    await client.xdel(out, entry)
    await client.hincrby(redis.job_key(claim.job_id), "events", -1)


async def test_a_lost_event_is_published_again(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job = await producer.submit(animate_request(), PARTS)
        claim = await claimed(consumer)
        await publish(consumer, claim, 1)
        await publish(consumer, claim, 2)
        await lose_last_event(consumer, claim)
        assert await publish(consumer, claim, 2)
        await publish(consumer, claim, 3)
        await consumer.end(claim, messages.JobDone(frames=3, duration_s=0.12))
        events = [event async for event in producer.follow(job, consume=True)]
        assert [e.index for e in events if isinstance(e, messages.JobFragment)] == [0, 1, 2]


async def test_the_worker_cannot_publish_after_a_lost_event(url: str) -> None:
    async with connected(url) as (producer, consumer):
        await producer.submit(animate_request(), PARTS)
        claim = await claimed(consumer)
        await publish(consumer, claim, 1)
        await lose_last_event(consumer, claim)
        with pytest.raises(ServiceError, match="was lost"):
            await publish(consumer, claim, 2)


async def test_a_reader_gets_a_fragment_that_it_has_read_only_once(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job = await producer.submit(animate_request(), PARTS)
        claim = await claimed(consumer)
        await publish(consumer, claim, 1)
        events = producer.follow(job, consume=True)
        assert [await anext(events), await anext(events)] == [messages.Queued(), fragment(0)]
        await lose_last_event(consumer, claim)
        await publish(consumer, claim, 1)
        await publish(consumer, claim, 2)
        assert await anext(events) == fragment(1)


async def test_a_missing_fragment_ends_the_readers_video(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job = await producer.submit(animate_request(), PARTS)
        claim = await claimed(consumer)
        for number in (1, 2):
            await publish(consumer, claim, number)
        out = redis.out_key(job)
        [_, (first, _), _] = await consumer.connection.redis.xrange(out)
        await consumer.connection.redis.xdel(out, first)
        with pytest.raises(ServiceError, match="was lost"):
            [_ async for _ in producer.follow(job, consume=True)]


async def test_a_lost_acknowledgement_is_sent_again(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job = await producer.submit(animate_request(), PARTS)
        claim = await claimed(consumer)
        await publish(consumer, claim, 1)
        events = producer.follow(job, consume=True)
        assert [await anext(events), await anext(events)] == [messages.Queued(), fragment(0)]
        reading = redis.in_key(job)
        client = consumer.connection.redis

        async def lose_and_wait() -> list[Any]:
            found: list[Any] = []
            await client.delete(reading)
            await client.xadd(reading, {"m": "", "b": ""})
            while len(found) < 2:
                found = await client.xrange(reading)
            return found

        following = asyncio.ensure_future(anext(events))
        while await client.xlen(reading) < 2:
            await asyncio.sleep(0.01)
        found = await asyncio.wait_for(lose_and_wait(), 5.0)
        following.cancel()
        fields = found[-1][1]
        assert messages.unpack_command(fields[b"m"], fields[b"b"]) == messages.Ack(index=0)


@pytest.mark.parametrize(
    ("given", "addresses", "name", "db"),
    [
        ("redis+sentinel://a,b:1,[::1]:2", [("a", 26379), ("b", 1), ("::1", 2)], "mymaster", 0),
        ("redis+sentinel://u:p%40@a/queue/3?sentinel_password=s", [("a", 26379)], "queue", 3),
        ("rediss+sentinel://u:p%40@a/queue?ssl_ca_certs=ca.pem", [("a", 26379)], "queue", 0),
    ],
)
async def test_the_url_of_sentinels(
    given: str, addresses: list[tuple[str, int]], name: str, db: int
) -> None:
    async with open_client(given, 1.0) as client:
        pool = client.connection_pool
        sentinels = [s.connection_pool.connection_kwargs for s in pool.sentinel_manager.sentinels]
        assert [(s["host"], s["port"]) for s in sentinels] == addresses
        assert pool.service_name == name and pool.connection_kwargs.get("db", 0) == db
        assert pool.connection_kwargs.get("password") == ("p@" if "p%40" in given else None)
        assert sentinels[0].get("password") == ("s" if "=s" in given else None)
        tls = {"ssl_ca_certs": "ca.pem"} if "ca.pem" in given else {}
        assert tls.items() <= pool.connection_kwargs.items() and tls.items() <= sentinels[0].items()
    assert "p%40" not in without_password(given)
