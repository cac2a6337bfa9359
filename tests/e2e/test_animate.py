"""The whole way with the student that ships: real portraits and speech, real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from fada.cli import main
from tests.server.media_files import sound
from tests.server.media_probe import probe
from tests.server.service import Service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def speech(examples: Path, tmp_path: Path) -> Path:
    """The first two seconds of the example."""
    pcm, rate = soundfile.read(examples / "speech.wav")
    path = tmp_path / "speech.wav"
    soundfile.write(path, pcm[: 2 * rate], rate)
    return path


def animate(client: httpx.Client, portrait: Path, audio: bytes, **fields: str) -> httpx.Response:
    files = {"portrait": (portrait.name, portrait.read_bytes()), "audio": ("a", audio)}
    return client.post("/animate", files=files, data=fields, timeout=120.0)


@pytest.mark.parametrize("name", ["astronaut.jpg", "monalisa.jpg", "presenter.jpg"])
def test_a_portrait_talks(client: httpx.Client, examples: Path, speech: Path, name: str) -> None:
    response = animate(client, examples / name, speech.read_bytes(), size="256", seed="1")
    assert response.status_code == 200, response.text
    seen = probe(response.content)
    seconds = soundfile.info(speech).duration
    assert (seen.width, seen.height) == (256, 256)
    assert seen.video_s == pytest.approx(seconds, abs=0.041)
    assert seen.sound_s == pytest.approx(seconds, abs=0.001)
    assert np.ptp(seen.pictures, axis=0).max() > 0.3  # the picture moves
    sent, rate = soundfile.read(speech, dtype="float32")
    received = seen.sound[:: seen.rate // rate][: len(sent)]
    assert np.corrcoef(received, sent[: len(received)])[0, 1] > 0.9


def test_full_framing_keeps_the_whole_picture(client: httpx.Client, examples: Path) -> None:
    portrait = examples / "monalisa.jpg"
    response = animate(client, portrait, sound(0.4), size="300", framing="full")
    seen = probe(response.content)
    with Image.open(portrait) as picture:
        aspect = picture.width / picture.height
    assert max(seen.width, seen.height) == 300
    assert seen.width / seen.height == pytest.approx(aspect, abs=2 / 300)


def test_avatar_portrait_and_command_line_give_the_same_video(
    client: httpx.Client, examples: Path, tmp_path: Path
) -> None:
    portrait, audio, out = examples / "astronaut.jpg", tmp_path / "a.flac", tmp_path / "o.mp4"
    audio.write_bytes(sound(1.0))
    direct = animate(client, portrait, audio.read_bytes(), size="128", seed="7")
    made = client.post("/avatars", files={"portrait": ("p", portrait.read_bytes())})
    assert made.status_code == 201
    again = client.post(
        "/animate",
        files={"audio": ("a", audio.read_bytes())},
        data={"avatar_id": made.json()["avatar_id"], "size": "128", "seed": "7"},
    )
    assert again.content == direct.content
    with pytest.raises(SystemExit) as ended:
        main(["animate", str(portrait), str(audio), "-o", str(out), "--size", "128", "--seed", "7"])
    assert ended.value.code == 0
    assert out.read_bytes() == direct.content


@pytest.mark.parametrize("option", [("steps", "6"), ("audio_cfg", "4"), ("reference_cfg", "4")])
def test_an_option_changes_the_video(
    client: httpx.Client, examples: Path, option: tuple[str, str]
) -> None:
    portrait, audio = examples / "astronaut.jpg", sound(0.6)
    plain = animate(client, portrait, audio, size="128", seed="7")
    other = animate(client, portrait, audio, size="128", seed="7", **dict([option]))
    assert other.is_success
    assert other.content != plain.content


def test_concurrent_sessions_do_not_change_each_other(
    service: Service, client: httpx.Client, examples: Path, speech: Path
) -> None:
    portrait = examples / "astronaut.jpg"
    alone = animate(client, portrait, speech.read_bytes(), size="128", seed="1")
    files = {"portrait": ("p", portrait.read_bytes()), "audio": ("a", speech.read_bytes())}
    with client.stream("POST", "/animate", files=files, data={"size": "128", "seed": "1"}) as one:
        chunks = one.iter_bytes()
        received = next(chunks)
        with service.client() as other:
            assert animate(other, examples / "monalisa.jpg", sound(0.5), size="128").is_success
        received += b"".join(chunks)
    difference = np.abs(probe(received).pictures - probe(alone.content).pictures)
    assert difference.max() < 1.0


def test_unusable_portraits_are_rejected(client: httpx.Client, test_data: Path) -> None:
    bad = test_data / "portraits" / "bad_inputs"
    for name, code in [
        ("noface_chelsea.jpg", "no_face"), ("noface_dogs.jpg", "no_face"),
        ("noface_hubble_deep_field.jpg", "no_face"), ("blank.png", "no_face"),
        ("noise.png", "no_face"), ("not_an_image.jpg", "unsupported_media"),
        ("one_pixel.png", "unsupported_media"), ("mouth_masked.jpg", "occluded"),
    ]:  # fmt: skip
        response = animate(client, bad / name, sound(0.1), size="128")
        assert response.json()["code"] == code, name
    for name in ("multi_bald_guys.jpg", "gray_L.png"):
        assert animate(client, bad / name, sound(0.1), size="128").status_code == 200, name
