"""What jobs may hold together and each client alone: the law, and what follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
import redis as blocking
from hypothesis import given, settings
from hypothesis import strategies as st

from server import metrics
from server.api.access import Access
from server.api.protocol import AnimationOptions
from server.broker import estimates, messages, redis
from server.broker.embedded import embedded_server, valkey_program
from server.broker.producer import JobProducer
from server.broker.reservations import Limits
from server.errors import ServiceError
from server.settings import Settings
from tests.server.broker.test_broker import (
    animate_request,
    avatar,
    claim_next,
    connected,
    fragment,
    publish,
    started,
)
from tests.server.media_files import sound

pytestmark = pytest.mark.anyio

PLACES, REDIS_BYTES, FOLDER_BYTES = 6, 1000, 5000
KEYS = [redis.RESERVED, redis.EXPIRIES]
Steps = list[tuple[str, int, str, int, int]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded_server(valkey_program()) as server:
        yield server.url


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[blocking.Redis]:
    with blocking.Redis(unix_socket_path=url.removeprefix("unix://")) as client:
        yield client


def held(server: blocking.Redis) -> dict[str, tuple[str, int, int, str]]:
    """Each job's kind, bytes in Redis and in the folder, and client."""
    found = {}
    for job, entry in server.hgetall(redis.RESERVED).items():
        kind, in_redis, in_folder, client = entry.decode().split(" ", 3)
        found[job.decode()] = kind, int(in_redis), int(in_folder), client
    return found


@settings(max_examples=60)
@given(
    share=st.sampled_from([0.5, 0.75, 1.0]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["reserve", "change", "free"]),
            st.integers(0, 9),  # the job
            st.sampled_from(["key:a", "address:::1", "address:10.0.0.1"]),
            st.integers(0, 600),
            st.integers(0, 3000),
        ),
        max_size=30,
    ),
)
def test_nobody_takes_more_than_there_is_or_than_its_share(
    server: blocking.Redis, share: float, steps: Steps
) -> None:
    server.flushall()
    text = resources.files("server.broker").joinpath("lua/reserve.lua").read_text()
    reserve: Any = server.register_script(text)
    for step, number, client, in_redis, in_folder in steps:
        job, before = f"job{number}", held(server)
        if step == "free":
            server.hdel(redis.RESERVED, job)
            server.zrem(redis.EXPIRIES, job)
            continue
        kind = "animate" if step == "reserve" and job not in before else ""
        amounts = [1, PLACES, in_redis, REDIS_BYTES, in_folder, FOLDER_BYTES]
        missing, *_ = reserve(KEYS, [job, 100, kind, client, share, *amounts])
        after = held(server)
        if missing or (not kind and job not in before):
            assert after == before
            continue
        owner = after[job][3]
        assert after == {**before, job: ("animate", in_redis, in_folder, owner)}
        for what, limit in ((1, REDIS_BYTES), (2, FOLDER_BYTES)):
            total = sum(entry[what] for entry in after.values())
            own = sum(entry[what] for entry in after.values() if entry[3] == owner)
            grown = after[job][what] > (before[job][what] if job in before else 0)
            assert total <= limit
            assert not grown or own <= share * (limit - (total - own))
        own = sum(entry[3] == owner for entry in after.values())
        assert len(after) <= PLACES
        assert not kind or own <= max(1, share * (PLACES - (len(after) - own)))


def producer_of(producer: JobProducer, client: str, **limits: Any) -> JobProducer:
    return JobProducer(
        producer.connection,
        producer.max_jobs,
        100,
        owner=client,
        client=client,
        limits=Limits(**limits),
    )


async def test_a_second_client_gets_in_when_the_first_has_filled_its_share(url: str) -> None:
    async with connected(url, max_jobs=4) as (producer, _):
        first, second = (producer_of(producer, name, share=0.75) for name in ("a", "b"))
        for _ in range(3):
            await first.submit(animate_request(), {})
        with pytest.raises(ServiceError, match="75% of what others leave") as caught:
            await first.submit(animate_request(), {})
        assert caught.value.code == "busy"
        await second.submit(animate_request(), {})


async def test_a_client_holds_its_share_of_the_live_sessions(url: str) -> None:
    async with connected(url) as (producer, _):  # whose worker has two places
        access = Access(producer.connection, Settings(), share=0.75)
        async with access.session("a"):
            with pytest.raises(ServiceError, match="75% of the 2 places") as caught:
                async with access.session("a"):
                    raise AssertionError("accepted")
            assert caught.value.code == "busy"
            async with access.session("b"):
                pass
        async with access.session("a"):
            pass


async def test_uploads_are_refused_before_they_are_stored(url: str) -> None:
    async with connected(url) as (producer, _):
        narrow = producer_of(producer, "a", redis_bytes=1000)
        async with narrow.place("animate", 800) as place:
            await place.write("audio", bytes(800))
            with pytest.raises(ServiceError, match="expected at most 200 now") as caught:
                async with narrow.place("animate", 300):
                    raise AssertionError("accepted")
            assert caught.value.code == "busy"
            with pytest.raises(ServiceError, match="expected at most 1000") as caught:
                async with narrow.place("animate", 1001):
                    raise AssertionError("accepted")
            assert caught.value.code == "too_large"
        assert not await producer.connection.redis.exists(*KEYS, redis.part_key("x", "audio"))


async def test_a_place_that_was_not_used_leaves_nothing(url: str) -> None:
    async with connected(url) as (producer, _):
        before = set(await producer.connection.redis.keys("*"))
        with pytest.raises(ServiceError, match="refused"):
            async with producer.place("animate", 3 << 20) as place:
                for _ in range(3):
                    await place.write("audio", bytes(1 << 20))
                raise ServiceError("bad_request", "refused")
        assert set(await producer.connection.redis.keys("*")) == before


async def test_an_upload_arrives_whole_in_any_blocks(url: str) -> None:
    async with connected(url) as (producer, consumer):
        blob = bytes(range(256)) * 10_000
        async with producer.place("animate", len(blob)) as place:
            for at in range(0, len(blob), 700_001):
                await place.write("audio", blob[at : at + 700_001])
            job_id = await place.submit(animate_request())
        assert await consumer.part(job_id, "audio") == blob


async def test_a_job_holds_its_bytes_until_it_ends_and_its_video_until_it_goes(url: str) -> None:
    async with connected(url) as (producer, consumer):
        async with producer.place("animate", 12) as place:
            job_id = await place.submit(animate_request(keep=True), video_bytes=5000)
        assert await reserved(producer, job_id) == b"animate 5000 0 "
        figures = (await metrics.render(producer.connection, "api")).decode()
        assert 'fada_reserved_bytes{store="redis"} 5000' in figures
        claim = await claim_next(consumer)
        await publish(consumer, claim, 1, event=started())
        await publish(consumer, claim, 2, event=fragment(0))
        index = messages.pack_index([("1-0", 1000)])
        done = messages.JobDone(frames=8, duration_s=0.32, init=b"init", index=index)
        await consumer.end(claim, done)
        assert await reserved(producer, job_id) == b"kept 1004 0 "
        await producer.forget(job_id)
        assert await reserved(producer, job_id) is None


async def test_room_for_a_new_job_is_made_by_the_clients_own_oldest_video(url: str) -> None:
    async with connected(url) as (producer, consumer):
        mine, other = (producer_of(producer, name, redis_bytes=3000) for name in ("a", "b"))
        videos = []
        for one in (other, mine, mine):
            async with one.place("animate", 0) as place:
                job_id = await place.submit(animate_request(keep=True), video_bytes=1000)
            videos.append((one, job_id))
            claim = await claim_next(consumer)
            await publish(consumer, claim, 1, event=fragment(0))
            index = messages.pack_index([("1-0", 996)])
            done = messages.JobDone(frames=8, duration_s=0.32, init=b"init", index=index)
            await consumer.end(claim, done)
        await mine.submit(animate_request(), {"audio": bytes(500)})
        assert [await one.keeps_video(job) for one, job in videos] == [True, False, True]


async def test_a_video_that_grows_beyond_what_was_expected_is_bounded(url: str) -> None:
    async with connected(url) as (producer, consumer):
        job_id = await producer.submit(animate_request(keep=True), {})
        claim = await claim_next(consumer)
        narrow = type(consumer)(
            consumer.connection, "w1", consumer.retention, limits=Limits(redis_bytes=5000)
        )
        await narrow.reserve_video(claim, 4000)
        assert await reserved(producer, job_id) == b"animate 4000 0 "
        with pytest.raises(ServiceError) as caught:
            await narrow.reserve_video(claim, 5001)
        assert caught.value.code == "too_large"


async def reserved(producer: JobProducer, job_id: str) -> bytes | None:
    entry: bytes | None = await producer.connection.redis.hget(redis.RESERVED, job_id)
    return entry


async def test_many_large_uploads_spare_avatars_and_fail_no_accepted_job(url: str) -> None:
    """32 times 64 MiB into a broker of 1 GiB, at a sixteenth of the size."""
    async with connected(url, max_jobs=32) as (producer, consumer):
        server = producer.connection.redis
        used = (await server.info("memory"))["used_memory"]
        await server.config_set("maxmemory", used + (64 << 20))
        try:
            await consumer.save_avatar(avatar("a"), bytes(1 << 20))
            mine = producer_of(producer, "a", redis_bytes=16 << 20)
            uploads = [mine.submit(animate_request(), {"audio": bytes(4 << 20)}) for _ in range(32)]
            answers = await asyncio.gather(*uploads, return_exceptions=True)
            accepted = [answer for answer in answers if isinstance(answer, str)]
            refused = [answer for answer in answers if not isinstance(answer, str)]
            assert len(accepted) == 4
            assert all(isinstance(e, ServiceError) and e.code == "busy" for e in refused)
            assert await producer.avatar("a") == avatar("a")
            for _ in accepted:
                claim = await claim_next(consumer)
                assert await consumer.part(claim.job_id, "audio") == bytes(4 << 20)
                assert await publish(consumer, claim, 1, event=started())
                await consumer.end(claim, messages.JobDone(frames=8, duration_s=0.32))
        finally:
            await server.config_set("maxmemory", 0)
        assert not await server.exists(*KEYS)


async def test_avatars_of_one_client_leave_room_for_those_of_others(url: str) -> None:
    async with connected(url) as (producer, consumer):
        many = replace(consumer.retention, max_avatars=9, avatar_share=0.5)
        narrow = replace(consumer, limits=Limits(avatar_bytes=1000), retention=many)
        for name in ("a", "b", "c"):
            await narrow.save_avatar(avatar(name), bytes(200), "first")
            assert await narrow.load_avatar("a", f"job-{name}") is not None  # it stays in use
        await narrow.save_avatar(avatar("d"), bytes(300), "second")
        with pytest.raises(ServiceError, match="expected at most 150 now") as caught:
            await narrow.save_avatar(avatar("e"), bytes(400), "third")
        assert caught.value.code == "busy"
        there = [await producer.connection.redis.exists(redis.avatar_key(n)) for n in "abcde"]
        assert there == [1, 0, 1, 1, 0]
        await redis.drop_avatar(producer.connection, "a")
        held = await producer.connection.redis.hkeys(redis.RESERVED_AVATARS)
        assert set(held) == {b"c", b"d"}


async def test_a_job_holds_the_copy_of_its_avatar(url: str) -> None:
    async with connected(url) as (producer, consumer):
        await consumer.save_avatar(avatar("a"), bytes(700))
        request = animate_request().model_copy(update={"avatar_id": "a"})
        job_id = await producer.submit(request, {"audio": bytes(30)})
        assert await reserved(producer, job_id) == b"animate 730 0 "


async def test_avatars_of_a_newer_format_go_to_workers_that_read_it(url: str) -> None:
    async with connected(url) as (producer, consumer):
        newer = messages.FORMAT + 1
        maker = type(consumer)(consumer.connection, "w2", consumer.retention, format=newer)
        await maker.save_avatar(avatar("a"), b"newer")
        request = messages.AnimateRequest(
            options=AnimationOptions(), model="fake", seed=7, avatar_id="a"
        )
        job_id = await producer.submit(request, {})
        assert await consumer.claim("animate") is None
        claim = await maker.reclaim("animate", idle=True)
        assert claim is not None and claim.job_id == job_id
        assert await maker.load_avatar("a", job_id) == b"newer"
        with pytest.raises(ServiceError, match="of another release"):
            await consumer.load_avatar("a", "another")


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_the_length_of_a_sound_is_read_from_its_head(kind: str) -> None:
    blob = sound(3.0, kind=kind)
    assert estimates.speech_s(blob[:512], len(blob)) == pytest.approx(3.0, abs=0.01)
    assert estimates.speech_s(b"ID3" + bytes(509), 4000) is None
    assert estimates.speech_s(blob[:20], len(blob)) is None
