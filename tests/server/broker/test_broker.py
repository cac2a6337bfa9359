"""Both halves of the broker over real servers: the bundled Valkey, and Debian's Redis if there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.broker import messages, redis
from server.broker.client import Client, give_up
from server.broker.embedded import embedded_server, valkey_program
from server.broker.liveness import bury
from server.broker.work import Claim, Limits, Work
from server.errors import ServiceError
from server.protocol import AnimationOptions, AvatarView, FaceView, ModelView

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
async def halves(url: str, max_jobs: int = 4) -> AsyncIterator[tuple[Client, Work]]:
    async with redis.connect(url) as connection:
        await connection.redis.flushall()
        work = Work(connection, "w1", Limits(100, 100, max_avatars=2, max_videos=2))
        await work.join()
        await work.beat([MODEL])
        yield Client(connection, max_jobs, 100), work


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


async def taken(work: Work) -> Claim:
    claim = await work.claim()
    assert claim is not None
    return claim


async def all_of(client: Client, job_id: str, *, consume: bool) -> list[messages.AnyEvent]:
    return [event async for event in client.follow(job_id, consume=consume)]


async def keys(client: Client) -> set[str]:
    found = {key.decode() for key in await client.connection.redis.keys("*")}
    return found - {redis.JOBS, redis.WORKERS, redis.worker_key("w1")}


async def test_a_job_goes_over_and_its_video_comes_back(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        assert claim == Claim(job_id, wish())
        assert await work.part(job_id, "audio") == b"sound"
        sent = [started(), fragment(0), fragment(1)]
        for event in sent:
            assert await work.publish(job_id, event)
        done = messages.Done(frames=16, duration_s=0.64)
        await work.end(job_id, done)
        await work.release(claim)
        got = await all_of(client, job_id, consume=True)
        assert got == [messages.Queued(), *sent, done]
        await give_up(client, job_id)
        view = await client.view(job_id)
        assert view is not None
        assert (view.status, view.progress, view.frames) == ("done", 1.0, 16)
        assert await keys(client) == {redis.job_key(job_id)}
        assert await client.connection.redis.ttl(redis.job_key(job_id)) > 0


async def test_the_worker_hears_what_was_read(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        await taken(work)
        await work.publish(job_id, fragment(0))
        await work.publish(job_id, fragment(1))
        commands, events = work.commands(job_id), client.follow(job_id, consume=True)
        assert await anext(commands) == messages.Read(index=-1)
        for _ in range(3):
            await anext(events)
        assert await anext(commands) == messages.Read(index=0)
        assert await client.connection.redis.xlen(redis.out_key(job_id)) == 2


async def test_a_reader_waits_for_what_is_still_being_made(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        reading = asyncio.create_task(all_of(client, job_id, consume=True))
        claim = await taken(work)
        await work.publish(job_id, started())
        await work.end(claim.job_id, messages.Failed(code="empty_audio", detail="nothing"))
        assert (await asyncio.wait_for(reading, 10))[-1] == messages.Failed(
            code="empty_audio", detail="nothing"
        )


async def test_a_kept_video_can_be_read_again_and_old_ones_go(url: str) -> None:
    async with halves(url) as (client, work):
        ids = []
        for _ in range(3):
            ids.append(await client.submit(wish(keep=True), PARTS))
            claim = await taken(work)
            await work.publish(claim.job_id, started())
            await work.publish(claim.job_id, fragment(0))
            await work.end(claim.job_id, messages.Done(frames=8, duration_s=0.32))
            await work.release(claim)
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


async def test_a_running_job_hears_that_it_is_cancelled(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        claim = await taken(work)
        commands = work.commands(job_id)
        await anext(commands)
        await give_up(client, job_id)
        assert await anext(commands) == messages.Cancel()
        assert not await work.publish(job_id, fragment(0))
        await work.end(job_id, messages.Done(frames=0, duration_s=0.0))
        await work.release(claim)
        view = await client.view(job_id)
        assert view is not None and view.status == "cancelled"
        assert await keys(client) == {redis.job_key(job_id)}


async def test_when_all_places_are_taken_it_is_busy(url: str) -> None:
    async with halves(url, max_jobs=2) as (client, work):
        first = await client.submit(wish(), PARTS)
        await client.submit(wish(), PARTS)
        with pytest.raises(ServiceError) as caught:
            await client.submit(wish(), PARTS)
        assert caught.value.code == "busy"
        assert len(await keys(client)) == 2 * 4  # nothing of the refused one
        await taken(work)
        await work.end(first, messages.Done(frames=0, duration_s=0.0))
        await client.submit(wish(), PARTS)


async def test_when_memory_is_short_old_things_go_and_then_it_is_busy(url: str) -> None:
    async with halves(url) as (client, work):
        kept = await client.submit(wish(keep=True), PARTS)
        claim = await taken(work)
        await work.publish(kept, fragment(0).model_copy(update={"data": bytes(4 << 20)}))
        await work.end(kept, messages.Done(frames=8, duration_s=0.32))
        await work.release(claim)
        await work.save_avatar(avatar("a"), b"a")
        running = await client.submit(wish(), PARTS)
        claim = await taken(work)
        used = (await client.connection.redis.info("memory"))["used_memory"]
        await client.connection.redis.config_set("maxmemory", used - (1 << 20))
        try:
            assert await work.publish(running, fragment(0))  # what is kept makes room
            assert not await client.keeps_video(kept)
            assert await client.avatar("a") is not None
            await client.connection.redis.config_set("maxmemory", 1)
            for full in (client.submit(wish(), PARTS), work.publish(running, fragment(1))):
                with pytest.raises(ServiceError) as caught:
                    await full
                assert caught.value.code == "busy"
            assert await client.avatar("a") is None
            # What was taken can still be given back.
            await work.end(running, messages.Failed(code="busy", detail="full"))
            await work.release(claim)
            await client.forget(running)
        finally:
            await client.connection.redis.config_set("maxmemory", 0)
        assert await keys(client) == {redis.job_key(running)}


async def test_without_a_worker_nothing_is_taken(url: str) -> None:
    async with halves(url) as (client, work):
        await work.leave()
        with pytest.raises(ServiceError) as caught:
            await client.submit(wish(), PARTS)
        assert caught.value.code == "no_worker"
        assert (await client.models()).models == []


async def test_the_jobs_of_a_dead_worker_end_with_an_error(url: str) -> None:
    async with halves(url) as (client, work):
        job_id = await client.submit(wish(), PARTS)
        await taken(work)
        await work.publish(job_id, started())
        await bury(client.connection, "w1")
        ending = (await all_of(client, job_id, consume=True))[-1]
        assert isinstance(ending, messages.Failed) and "gone" in ending.detail
        view = await client.view(job_id)
        assert view is not None and view.status == "failed"
        assert view.error is not None and view.error.code == "internal_error"
        assert await client.connection.redis.xlen(redis.JOBS) == 0


async def test_avatars_are_kept_and_the_longest_unused_goes(url: str) -> None:
    async with halves(url) as (client, work):
        for name in ("a", "b"):
            await work.save_avatar(avatar(name), name.encode())
        assert await work.load_avatar("a") == b"a"
        await work.save_avatar(avatar("c"), b"c")
        assert await client.avatar("a") == avatar("a")
        assert await client.avatar("b") is None
        assert await client.delete_avatar("a")
        assert not await client.delete_avatar("a")
        assert await work.load_avatar("a") is None


def avatar(name: str) -> AvatarView:
    return AvatarView(
        avatar_id=name, width=4, height=4, face=FaceView(box=(0, 0, 4, 4), confidence=1.0)
    )
