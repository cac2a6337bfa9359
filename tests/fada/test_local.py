"""`fada.load`: the client's verbs in this process, over the fake pipeline and the real student."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fada
from fada import Done, Fragment, InitSegment, Interrupted, LocalClient, RawFrame
from media.fmp4 import SAMPLE_RATE
from model.types import FPS
from tests.server.media_files import NO_FACE, POISON, picture, sound
from tests.server.media_probe import probe
from tests.server.service import FAKE, KEYS, Service
from tests.server.stream_client import pcm


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalClient]:
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    with fada.load() as client:
        yield client
    assert not [t for t in threading.enumerate() if t.name.startswith(("sessions", "network"))]


def test_a_video_comes_fragment_by_fragment(client: LocalClient) -> None:
    with client.animate(picture(), sound(1.0), size=128, seed=7) as video:
        units = list(video)
    assert (video.seed, video.frames, video.duration_s) == (7, 25, pytest.approx(1.0))
    assert units[0][4:8] == b"ftyp" and all(unit[4:8] == b"moof" for unit in units[1:])
    assert len(units) >= 4
    assert probe(b"".join(units)).video_s == pytest.approx(1.0)


def test_it_is_the_services_video(client: LocalClient, guarded: Service, tmp_path: Path) -> None:
    client.animate(picture(), sound(1.0), tmp_path / "here.mp4", size=128, seed=7)
    with fada.Client(guarded.url, KEYS[0]) as remote:
        remote.animate(picture(), sound(1.0), tmp_path / "there.mp4", size=128, seed=7)
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()


def test_inputs_may_be_contents_paths_or_files(client: LocalClient, tmp_path: Path) -> None:
    portrait, audio = tmp_path / "p.png", tmp_path / "a.flac"
    portrait.write_bytes(picture())
    audio.write_bytes(sound(0.4))
    videos = [
        b"".join(client.animate(given, spoken_audio, size=128, seed=3))
        for given, spoken_audio in (
            (portrait, audio),
            (str(portrait), str(audio)),
            (io.BytesIO(picture()), io.BytesIO(sound(0.4))),
        )
    ]
    assert len(set(videos)) == 1


def test_frames_on_request(client: LocalClient) -> None:
    frames = list(client.animate(picture(), sound(1.0), frames=True, size=128, seed=7))
    assert [frame.index for frame in frames] == list(range(25))
    assert {frame.picture.shape for frame in frames} == {(128, 128, 3)}
    assert {frame.picture.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert frames[5].start_s == pytest.approx(5 / FPS)
    assert {len(frame.sound) for frame in frames[:-1]} == {SAMPLE_RATE // FPS}
    assert sum(len(frame.sound) for frame in frames) == SAMPLE_RATE
    assert np.abs(np.concatenate([frame.sound for frame in frames])).max() > 0.05
    with pytest.raises(ValueError, match="frames = True and out"):
        client.animate(picture(), sound(1.0), "out.mp4", frames=True)


def test_a_live_session(client: LocalClient) -> None:
    avatar = client.create_avatar(picture(size=(64, 96)))
    assert (avatar.width, avatar.height) == (64, 96)
    with client.stream(avatar.avatar_id, size=128, seed=5) as stream:
        assert stream.ready.seed == 5 and stream.ready.mime.startswith("video/mp4; codecs=")
        stream.update(audio_cfg=2.0)
        stream.state("listening")
        for _ in range(4):
            stream.push_audio(pcm(0.25))
        stream.end()
        events = list(stream)
    assert isinstance(events[0], InitSegment) and events[-1] == Done(25, pytest.approx(1.0))
    fragments = [event for event in events if isinstance(event, Fragment)]
    assert [fragment.index for fragment in fragments] == list(range(len(fragments)))
    video = events[0].data + b"".join(fragment.data for fragment in fragments)
    assert probe(video).video_s == pytest.approx(1.0)


def test_a_live_session_in_frames_is_interrupted(client: LocalClient) -> None:
    with client.stream(portrait=picture(), size=128, idle=True, frames=True) as stream:
        assert stream.ready.mime == ""
        stream.push_audio(pcm(20.0))
        kinds = set[str]()
        while "speech" not in kinds:
            frame = next(stream)
            assert isinstance(frame, RawFrame) and frame.picture.shape == (128, 128, 3)
            kinds.add(frame.kind)
        stream.interrupt()
        while not isinstance(event := next(stream), Interrupted):
            pass
        assert event.at_s < 10.0


def test_a_session_that_waits_can_be_left(client: LocalClient) -> None:
    with client.stream(portrait=picture(), size=128) as stream:
        waiting = threading.Thread(target=lambda: list(stream))
        waiting.start()
    waiting.join(10.0)
    assert not waiting.is_alive()


def test_errors_are_the_clients(client: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fada.NoFace) as no_face:
        client.animate(picture(NO_FACE), sound(0.2), size=128)
    assert (no_face.value.code, no_face.value.status) == ("no_face", 422)
    with pytest.raises(fada.InvalidOption, match="size"):
        client.animate(picture(), sound(0.2), size=7)
    with pytest.raises(fada.InvalidOption, match="model"):
        client.animate(picture(), sound(0.2), model="other")
    with pytest.raises(fada.UnsupportedMedia):
        client.animate(picture(), b"no sound")
    with pytest.raises(fada.BadRequest):
        client.animate(None, sound(0.2))
    with pytest.raises(fada.NotFound):
        client.animate(None, sound(0.2), avatar_id="none")
    with client.stream(portrait=picture(), size=128) as stream:
        for wrong in ({"size": 256}, {"steps": 0}):
            with pytest.raises(fada.InvalidOption):
                stream.update(**wrong)
    with pytest.raises(ArithmeticError):
        list(client.animate(picture(POISON), sound(3.0), size=128))
    monkeypatch.delenv("FADA_PIPELINE")
    with pytest.raises(fada.InvalidOption, match="model = 'none', expected one of"):
        fada.load("none")


def test_the_real_student(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fada.load("motion-fast") as client:
        assert client.models()[0].name == "motion-fast"
        avatar = client.create_avatar(examples / "monalisa.jpg")
        with client.stream(avatar.avatar_id, size=128, seed=1, frames=True) as stream:
            stream.push_audio(pcm(1.0))
            stream.end()
            *frames, done = stream
        assert done == Done(25, pytest.approx(1.0))
        pictures = np.stack([frame.picture for frame in frames if isinstance(frame, RawFrame)])
        assert pictures.shape == (25, 128, 128, 3)
        assert np.abs(np.diff(pictures.astype(int), axis=0)).max() > 0
