"""The Python client against the real service, blocking and not."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fada_client
import pytest
from fada_client import AsyncClient, Client, Done, Fragment, InitSegment, Interrupted
from fada_client.decode import FragmentDecoder
from fada_client.errors import error_of
from fada_client.wire import BoxReader
from hypothesis import given
from hypothesis import strategies as st

from server.errors import KINDS
from tests.hostile.files import integer_floats
from tests.server.media_files import NO_FACE, POISON, picture, sound
from tests.server.media_probe import probe
from tests.server.service import KEYS, Service
from tests.server.stream_client import pcm

KEY = KEYS[0]


@pytest.fixture
def service(guarded: Service) -> Service:
    return guarded


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, KEY) as client:
        yield client


def awaited(service: Service, work: Callable[[AsyncClient], Any]) -> Any:
    async def everything() -> Any:
        async with AsyncClient(service.url, KEY) as client:
            return await work(client)

    return asyncio.run(everything())


def test_a_video_comes_fragment_by_fragment(client: Client) -> None:
    with client.animate(picture(), sound(1.0), size=128, seed=7) as video:
        units = list(video)
        assert video.seed == 7 and len(video.job_id) == 24
    assert units[0][4:8] == b"ftyp" and b"moov" in units[0]
    assert len(units) >= 4 and all(unit[4:8] == b"moof" for unit in units[1:])
    assert probe(b"".join(units)).video_s == pytest.approx(1.0)


def test_inputs_may_be_contents_paths_or_files(client: Client, tmp_path: Path) -> None:
    portrait, audio = tmp_path / "p.png", tmp_path / "a.flac"
    portrait.write_bytes(picture())
    audio.write_bytes(sound(0.4))
    for n, given_audio in enumerate((audio, str(audio), io.BytesIO(sound(0.4)), sound(0.4))):
        out = tmp_path / f"{n}.mp4"
        video = client.animate(portrait, given_audio, out, size=128, seed=3)
        assert probe(out.read_bytes()).video_s == pytest.approx(0.4)
        assert video.seed == 3 and list(video) == []


def test_avatars_and_models(client: Client) -> None:
    avatar = client.create_avatar(picture(size=(64, 96)))
    assert (avatar.width, avatar.height) == (64, 96)
    assert client.avatar(avatar.avatar_id) == avatar
    video = b"".join(client.animate(None, sound(0.2), avatar_id=avatar.avatar_id, size=128))
    assert probe(video).video_s == pytest.approx(0.2)
    client.delete_avatar(avatar.avatar_id)
    with pytest.raises(fada_client.NotFound):
        client.avatar(avatar.avatar_id)
    assert client.models()[0].name == "fake"


def test_jobs(client: Client, tmp_path: Path) -> None:
    job = client.jobs.submit(picture(), sound(1.0), size=128)
    client.jobs.video(job.id, tmp_path / "out.mp4")
    assert probe((tmp_path / "out.mp4").read_bytes()).video_s == pytest.approx(1.0)
    deadline = time.monotonic() + 20
    while client.jobs.get(job.id).status != "done":
        assert time.monotonic() < deadline
    assert client.jobs.get(job.id).frames == 25
    client.jobs.cancel(job.id)
    with pytest.raises(fada_client.NotFound):
        client.jobs.video(job.id, tmp_path / "out.mp4")


def test_video_and_job_name_what_was_repaired(client: Client) -> None:
    with client.animate(picture(), integer_floats(), size=128) as video:
        assert len(video.warnings) == 1 and "integers of 16 bits" in video.warnings[0]
        list(video)
    job = client.jobs.submit(picture(), integer_floats(), size=128)
    deadline = time.monotonic() + 20
    while (job := client.jobs.get(job.id)).status != "done":
        assert time.monotonic() < deadline
    assert "; ".join(job.warnings) == video.warnings[0]
    answer = client._http.get(f"/jobs/{job.id}/video")
    assert answer.headers["x-warning"] == video.warnings[0]


def test_a_live_session(client: Client) -> None:
    with client.stream(portrait=picture(), size=128, seed=5) as stream:
        assert stream.ready.seed == 5 and stream.ready.mime.startswith("video/mp4")
        stream.update(audio_cfg=2.0)
        for _ in range(4):
            stream.push_audio(pcm(0.25))
        stream.end()
        events = list(stream)
    assert isinstance(events[0], InitSegment) and isinstance(events[-1], Done)
    fragments = [event for event in events if isinstance(event, Fragment)]
    assert [fragment.index for fragment in fragments] == list(range(len(fragments)))
    video = events[0].data + b"".join(fragment.data for fragment in fragments)
    assert probe(video).video_s == pytest.approx(events[-1].duration_s, abs=0.001)
    assert events[-1].frames == 25
    decoder = FragmentDecoder(events[0].data)
    for fragment in fragments:  # none waits for the next fragment
        pictures = decoder.decode(fragment.data)
        assert len(pictures) == round(25 * fragment.duration_s)
        assert all((one.width, one.height) == (128, 128) for one in pictures)


def test_a_session_is_interrupted(client: Client) -> None:
    with client.stream(portrait=picture(), size=128, idle=True) as stream:
        stream.push_audio(pcm(20.0))
        while not isinstance(next(stream), Fragment):
            pass
        stream.interrupt()
        while not isinstance(event := next(stream), Interrupted):
            pass
        assert event.at_s < 10.0


def test_the_async_client_behaves_like_the_blocking_one(service: Service, tmp_path: Path) -> None:
    async def work(client: AsyncClient) -> None:
        units = [u async for u in await client.animate(picture(), sound(0.4), size=128, seed=7)]
        assert probe(b"".join(units)).video_s == pytest.approx(0.4)
        out = tmp_path / "out.mp4"
        video = await client.animate(picture(), sound(0.4), out, size=128, seed=7)
        assert video.seed == 7 and probe(out.read_bytes()).video_s == pytest.approx(0.4)
        avatar = await client.create_avatar(picture())
        assert await client.avatar(avatar.avatar_id) == avatar
        assert (await client.models())[0].name == "fake"
        job = await client.jobs.submit(None, sound(0.4), avatar_id=avatar.avatar_id, size=128)
        await client.jobs.video(job.id, out)
        assert (await client.jobs.get(job.id)).id == job.id
        await client.jobs.cancel(job.id)
        async with client.stream(avatar.avatar_id, size=128) as stream:
            await stream.update(steps=3)
            await stream.push_audio(pcm(0.5))
            await stream.end()
            events = [event async for event in stream]
        assert isinstance(events[-1], Done) and events[-1].frames == 13
        await client.delete_avatar(avatar.avatar_id)
        with pytest.raises(fada_client.NoFace):
            await client.create_avatar(picture(NO_FACE))

    awaited(service, work)


def test_service_errors_raise_the_clients_exceptions(client: Client, service: Service) -> None:
    with pytest.raises(fada_client.NoFace) as no_face:
        client.animate(picture(NO_FACE), sound(0.2), size=128)
    assert (no_face.value.code, no_face.value.status) == ("no_face", 422)
    with pytest.raises(fada_client.InvalidOption, match="size"):
        client.animate(picture(), sound(0.2), size=7)
    with pytest.raises(fada_client.UnsupportedMedia):
        client.animate(picture(), b"no sound")
    with (
        pytest.raises(fada_client.InvalidOption, match="steps"),
        client.stream(portrait=picture(), steps=0),
    ):
        pass
    with Client(service.url) as keyless:
        with pytest.raises(fada_client.Unauthorized):
            keyless.models()
        with pytest.raises(fada_client.Unauthorized), keyless.stream("x"):
            pass
    with Client("http://127.0.0.1:1", timeout_s=2.0) as unreachable:
        with pytest.raises(fada_client.ConnectionLost):
            unreachable.models()
        with pytest.raises(fada_client.ConnectionLost), unreachable.stream("x"):
            pass


def test_a_refused_session_raises_why(service: Service) -> None:
    async def work() -> None:
        async with AsyncClient(service.url) as keyless:
            for _ in range(5):  # whether the refusal comes before `start` is sent or after
                with pytest.raises(fada_client.Unauthorized):
                    async with keyless.stream("x"):
                        pass

    asyncio.run(work())


def test_a_video_that_breaks_off_raises(client: Client, tmp_path: Path) -> None:
    with pytest.raises(fada_client.ConnectionLost):
        client.animate(picture(POISON), sound(3.0), tmp_path / "out.mp4", size=128)


def test_every_error_code_has_an_exception() -> None:
    for code, kind in KINDS.items():
        error = error_of({"code": code, "detail": "x", "status": kind.status}, "5")
        assert type(error) is not fada_client.FadaError and error.code == code
        assert error.retry_after_s == 5
    later = error_of({"code": "of_a_later_version", "detail": "x"})
    assert (type(later), later.code) == (fada_client.FadaError, "of_a_later_version")


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.integers(1, 60))
def test_box_parsing_does_not_depend_on_chunking(bodies: list[bytes], step: int) -> None:
    def box(kind: bytes, body: bytes) -> bytes:
        return (8 + len(body)).to_bytes(4, "big") + kind + body

    units = [box(b"ftyp", b"x") + box(b"moov", bodies[0])]
    units += [box(b"moof", body) + box(b"mdat", body[::-1]) for body in bodies]
    whole, reader = b"".join(units), BoxReader()
    read = [
        unit for at in range(0, len(whole), step) for unit in reader.feed(whole[at : at + step])
    ]
    assert read == units
    reader.end()
    list(reader.feed(b"\0\0"))
    with pytest.raises(fada_client.ConnectionLost):
        reader.end()


def test_the_client_imports_without_the_service() -> None:
    code = "import sys, fada_client; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    ours = {"fada", "server", "model", "engines", "media", "training"}
    assert not {*ours, "torch", "numpy", "av", "fastapi"} & set(done.stdout.split())
