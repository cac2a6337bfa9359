"""The folder that API and workers share: large uploads and kept videos, and nothing for long."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.broker import messages, redis, videos
from server.broker.consumer import JobConsumer
from server.broker.embedded import embedded_server, valkey_program
from server.broker.folder import PRIVATE, SharedFolder, shared_folder
from server.broker.place import SMALL_BYTES
from server.broker.producer import JobProducer
from server.broker.reservations import Limits
from server.errors import ServiceError, SetupError
from server.worker.kept import KeptVideo
from tests.server.broker.test_broker import (
    MODEL,
    animate_request,
    claim_next,
    fragment,
    publish,
    started,
    worker,
)

pytestmark = pytest.mark.anyio

LIMITS = Limits(redis_bytes=16 << 20, folder_bytes=64 << 20)
BLOB = bytes(range(256)) * (SMALL_BYTES // 256 + 1)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded_server(valkey_program()) as server:
        yield server.url


@asynccontextmanager
async def sharing(url: str, data: Path) -> AsyncIterator[tuple[JobProducer, JobConsumer]]:
    async with redis.connect(url, data) as connection:
        await connection.redis.flushall()
        consumer = worker(connection, "w1")
        await consumer.join()
        await consumer.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
        yield JobProducer(connection, 8, 100, limits=LIMITS), consumer


def files(data: Path) -> set[str]:
    """Names of the files of jobs, whatever service they belong to."""
    return {path.name for path in data.glob("*/*.*")}


async def kept(producer: JobProducer, video_bytes: int = SMALL_BYTES + 1) -> str:
    async with producer.place("animate", 0) as place:
        return await place.submit(animate_request(keep=True), video_bytes=video_bytes)


async def make(consumer: JobConsumer, *, fragments: int) -> messages.JobDone:
    """Do the next job as a worker does: store and publish it, then index it."""
    claim = await claim_next(consumer)
    assert isinstance(claim.request, messages.AnimateRequest)
    video = KeptVideo(consumer, claim, claim.request)
    events = [started(), *map(fragment, range(fragments))]
    for number, event in enumerate(events, 1):
        assert await publish(consumer, claim, number, event=await video.store(event))
    published = videos.published_video(consumer.connection, claim.job_id)
    found = [event async for event in published if isinstance(event, messages.JobFragment)]
    index = messages.pack_index(e.stored for e in found if e.stored)
    done = messages.JobDone(frames=8, duration_s=0.32, init=b"init", index=index)
    await consumer.end(claim, done)
    return done


async def test_large_uploads_go_to_the_folder_and_go_with_their_job(
    url: str, tmp_path: Path
) -> None:
    async with sharing(url, tmp_path) as (producer, consumer):
        job_id = await producer.submit(animate_request(), {"portrait": b"p", "audio": BLOB})
        assert files(tmp_path) == {f"{job_id}.portrait", f"{job_id}.audio"}
        assert all(oct(p.stat().st_mode)[-3:] == "600" for p in tmp_path.glob("*/*.*"))
        small = await producer.submit(animate_request(), {"audio": b"small"})
        claim = await claim_next(consumer)
        assert await consumer.part(job_id, "audio") == BLOB
        assert await consumer.part(small, "audio") == b"small"
        await consumer.end(claim, messages.JobDone(frames=0, duration_s=0.0))
        assert not files(tmp_path)


async def test_a_large_video_is_kept_in_the_folder_and_read_by_ranges(
    url: str, tmp_path: Path
) -> None:
    async with sharing(url, tmp_path) as (producer, consumer):
        job_id = await kept(producer)
        await make(consumer, fragments=3)
        assert files(tmp_path) == {f"{job_id}.claim-1"}
        entries = await producer.connection.redis.xrange(redis.out_key(job_id))
        assert [fields[b"b"] for _, fields in entries] == [b"", b"init", b"", b"", b"", b""]
        data = [bytes([k]) * 1000 for k in range(3)]
        followed = [e async for e in producer.follow(job_id, consume=False)]
        assert [e.data for e in followed if isinstance(e, messages.JobFragment)] == data
        video = await videos.finished_video(producer.connection, job_id)
        assert video is not None and await producer.keeps_video(job_id)
        whole = b"init" + b"".join(data)
        for part in (range(len(whole)), range(2), range(900, 2500), range(3003, 3004)):
            reading = videos.read_video(producer.connection, job_id, video, part=part)
            pieces = [piece async for piece in reading]
            assert b"".join(pieces) == whole[part.start : part.stop]
        await producer.forget(job_id)
        assert not files(tmp_path) and not await producer.keeps_video(job_id)


async def test_a_video_that_changed_hands_is_made_of_both_workers_files(
    url: str, tmp_path: Path
) -> None:
    """The first worker, wrongly presumed dead, writes on and harms nothing."""
    async with sharing(url, tmp_path) as (producer, consumer):
        job_id = await kept(producer)
        first = await claim_next(consumer)
        assert isinstance(first.request, messages.AnimateRequest)
        before = KeptVideo(consumer, first, first.request)
        for number, event in ((1, started()), (2, fragment(0))):
            await publish(consumer, first, number, event=await before.store(event))
        await consumer.release([first])
        other = worker(producer.connection, "w2")
        second = await other.reclaim("animate", idle=True)
        assert second is not None
        late = await before.store(fragment(1).model_copy(update={"data": b"late" * 250}))
        assert not await publish(consumer, first, 3, event=late)
        reserved = await other.reserved_video(second)
        after = KeptVideo(other, second, first.request)
        await publish(other, second, 3, event=await after.store(fragment(1)))
        assert await other.reserved_video(second) == reserved > 0  # still that of the whole
        index = messages.pack_index([("0-1", 1000), ("0-2", 1000)])
        done = messages.JobDone(frames=16, duration_s=0.64, init=b"i", index=index)
        await other.end(second, done)
        events = [e async for e in producer.follow(job_id, consume=False)]
        data = [e.data for e in events if isinstance(e, messages.JobFragment)]
        assert data == [fragment(0).data, fragment(1).data]


async def test_workers_without_the_folder_leave_its_jobs_to_others(
    url: str, tmp_path: Path
) -> None:
    async with (
        sharing(url, tmp_path / "one") as (producer, consumer),
        redis.connect(url) as elsewhere,
        redis.connect(url, tmp_path / "two") as third,
    ):
        assert producer.connection.folder is not None and third.folder is not None
        assert producer.connection.folder.token != third.folder.token
        job_id = await kept(producer)
        for connection in (elsewhere, third):
            stranger = worker(connection, "stranger")
            assert await stranger.claim("animate") is None
            assert await stranger.reclaim("animate", idle=True) is None
            assert not await JobProducer(connection, 8, 100).keeps_video(job_id)
        claim = await consumer.reclaim("animate", idle=True)
        assert claim is not None and claim.job_id == job_id


async def test_without_a_shared_folder_a_large_video_is_refused_at_the_door(
    url: str, tmp_path: Path
) -> None:
    async with sharing(url, tmp_path / "one") as (producer, consumer):
        await consumer.leave()
        async with redis.connect(url) as elsewhere:
            alone = worker(elsewhere, "w2")
            await alone.heartbeat(messages.Heartbeat(models=[MODEL], live_places=2))
            await kept(producer, LIMITS.redis_bytes)
            with pytest.raises(ServiceError, match="bytes in Redis") as caught:
                await kept(producer, LIMITS.redis_bytes + 1)
            assert caught.value.code == "too_large"
            assert not files(tmp_path / "one")


async def test_a_full_disk_refuses_uploads_and_fails_only_the_job_that_needs_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(url, tmp_path) as (producer, consumer):
        other = await kept(producer)
        await make(consumer, fragments=1)
        job_id = await kept(producer)
        claim = await claim_next(consumer)
        assert isinstance(claim.request, messages.AnimateRequest)
        video = KeptVideo(consumer, claim, claim.request)

        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(ServiceError, match="disk is full") as caught:
                await video.store(fragment(0))
            assert caught.value.code == "busy"
            with pytest.raises(ServiceError, match="disk is full"):
                await producer.submit(animate_request(), {"audio": BLOB})
        await consumer.end(claim, messages.Failed(code="busy", detail="full"))
        assert files(tmp_path) == {f"{other}.claim-1"}
        view = await producer.view(job_id)
        assert view is not None and view.status == "failed"
        with monkeypatch.context() as patch:  # less is free than the limits allow
            patch.setattr(SharedFolder, "_room", lambda _: 5000)
            with pytest.raises(ServiceError, match="on disk, expected at most .* now") as caught:
                await kept(producer)
            assert caught.value.code == "busy"
        await kept(producer)


async def test_files_without_a_reservation_are_swept(url: str, tmp_path: Path) -> None:
    async with sharing(url, tmp_path) as (producer, consumer):
        folder = producer.connection.folder
        assert folder is not None
        job_id = await kept(producer)
        await make(consumer, fragments=1)
        await folder.write("0" * 24, "audio", b"left behind", at=0)
        await redis.sweep(producer.connection, folder)
        assert files(tmp_path) == {f"{job_id}.claim-1"}
        await producer.connection.redis.zadd(redis.EXPIRIES, {job_id: 1})  # its time is over
        await redis.sweep(producer.connection, folder)
        assert not files(tmp_path)


def test_what_a_killed_service_left_behind_is_removed_at_the_next_start(tmp_path: Path) -> None:
    for name in (f"{PRIVATE}killed", f"{PRIVATE}alive", "restarts-soon"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        (tmp_path / name / "a.audio").touch()
    with shared_folder(tmp_path, f"{PRIVATE}alive"):
        with shared_folder(tmp_path, f"{PRIVATE}new"):
            assert {path.name for path in tmp_path.iterdir()} == {
                f"{PRIVATE}alive", f"{PRIVATE}new", "restarts-soon",
            }  # fmt: skip
        assert not (tmp_path / f"{PRIVATE}new").exists()
        os.utime(tmp_path / "restarts-soon/lock", (0, 0))
        with shared_folder(tmp_path, "another"):
            assert not (tmp_path / "restarts-soon").exists()
        assert (tmp_path / "another").exists()


def test_processes_of_one_folder_have_one_token(tmp_path: Path) -> None:
    with shared_folder(tmp_path, "s") as one, shared_folder(tmp_path, "s") as two:
        assert one.token == two.token
    assert (tmp_path / "s").stat().st_mode & 0o77 == 0


def test_a_folder_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SetupError, match="FADA_DATA: cannot use"),
        shared_folder(tmp_path / "file", "s"),
    ):
        pass
