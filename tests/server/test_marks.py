"""What settings add to the marks of a service's videos: a visible label, a signature."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fada
from fada.cli import main
from media.fmp4 import FragmentedMP4Muxer
from media.label import LabelText, make_label
from media.signing import load_credentials, sign
from media.verify import read_marks
from server.api.protocol import AI_GENERATED
from server.errors import ServiceError
from server.worker.marks import Marks
from tests.media.certificates import SignerFiles, write_signer
from tests.server.media_files import overstated_sound, picture, sound
from tests.server.media_probe import pictures_of
from tests.server.rest_client import animate, problem
from tests.server.service import FAKE, Service, running
from tests.server.stream_client import pcm, run_session


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    files: SignerFiles = write_signer(tmp_path_factory.mktemp("signer"))
    return {
        **FAKE,
        "FADA_LABEL": "AI",
        "FADA_C2PA_CERT": str(files.certificates),
        "FADA_C2PA_KEY": str(files.key),
    }


@pytest.fixture(scope="module")
def service(settings: dict[str, str]) -> Iterator[Service]:
    with running(settings) as service:
        yield service


def verdict(video: bytes) -> str:
    report = read_marks(io.BytesIO(video))
    assert report.made_by_ai
    return report.verdict


def is_labelled(video: bytes) -> bool:
    """Whether each flat frame of 128 pixels has white letters in its corner."""
    label = make_label(LabelText("AI"), 128, 128)
    corners = pictures_of(video)[:, slice(*label.rows), slice(*label.columns)]
    return bool((np.ptp(corners.astype(int), axis=(1, 2)).min(axis=1) > 120).all())


@pytest.mark.parametrize("factor", [1, 200])  # in Redis, and expected to be too large for it
def test_a_kept_video_is_signed_when_it_is_finished(service: Service, factor: int) -> None:
    with service.client() as client:
        audio = overstated_sound(0.4, factor)
        answer = animate(client, audio=audio, headers={"Prefer": "respond-async"})
        assert answer.headers["x-content-source"] == AI_GENERATED
        job = answer.headers["location"]
        while client.get(job).json()["status"] not in ("done", "failed"):
            time.sleep(0.05)
        kept = client.get(f"{job}/video").content
        at_once = animate(client).content
    assert verdict(kept) == "signed" and is_labelled(kept)
    assert verdict(at_once) == "claimed, unsigned" and is_labelled(at_once)


def test_the_service_verifies_a_video(service: Service, settings: dict[str, str]) -> None:
    files = (Path(settings["FADA_C2PA_CERT"]), Path(settings["FADA_C2PA_KEY"]))
    with service.client() as client:
        video = animate(client).content
        answer = client.post("/verify", files={"video": ("a.mp4", video)})
        assert answer.status_code == 200
        report = answer.json()
        assert (report["verdict"], report["made_by_ai"]) == ("claimed, unsigned", True)
        assert [mark["name"] for mark in report["marks"]] == ["XMP", "comment", "XMP"]
        signed = sign(video, load_credentials(*files))
        report = client.post("/verify", files={"video": ("a.mp4", signed)}).json()
        assert report["verdict"] == "signed"
        for parts, status, code in (
            ({"video": ("a.mp4", b"no video")}, 415, "unsupported_media"),
            ({"video": ("a.mp4", video[:1000])}, 415, "unsupported_media"),
            ({"other": ("a.mp4", video)}, 400, "bad_request"),
        ):
            assert problem(client.post("/verify", files=parts)) == (status, code)


def test_a_live_session_is_labelled(service: Service) -> None:
    stream = run_session(service.url, [pcm(0.5)])
    video = b"".join(stream.data)
    assert verdict(video) == "claimed, unsigned" and is_labelled(video)


def test_videos_made_here_are_signed(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "p.png").write_bytes(picture())
    (tmp_path / "a.flac").write_bytes(sound(0.4))
    inputs = [str(tmp_path / "p.png"), str(tmp_path / "a.flac")]
    with pytest.raises(SystemExit) as ended:
        main(["animate", *inputs, "-o", str(tmp_path / "command.mp4"), "--size", "128"])
    assert ended.value.code == 0
    with fada.load() as client:
        client.animate(*inputs, tmp_path / "load.mp4", size=128)
    for name in ("command.mp4", "load.mp4"):
        video = (tmp_path / name).read_bytes()
        assert verdict(video) == "signed" and is_labelled(video)


def test_a_time_stamp_authority_that_does_not_answer_is_an_error(
    settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing goes out unsigned instead."""
    files = (Path(settings["FADA_C2PA_CERT"]), Path(settings["FADA_C2PA_KEY"]))
    credentials = load_credentials(*files, timestamps="http://127.0.0.1:1/")
    muxer = FragmentedMP4Muxer(64, 64, 25)
    fragment = muxer.add([np.zeros((64, 64, 3), np.uint8)], np.zeros(1920, np.float32))
    with pytest.raises(ServiceError, match="could not be signed"):
        Marks(credentials=credentials).signed(muxer.init_segment() + fragment)
    assert "http://127.0.0.1:1/" in caplog.text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"FADA_C2PA_KEY": None}, "FADA_C2PA_CERT and FADA_C2PA_KEY: expected both or none"),
        ({"FADA_C2PA_KEY": "cert"}, "FADA_C2PA_KEY: .* holds no private key in PEM"),
        ({"FADA_LABEL": "生成"}, "setting FADA_LABEL: .* the font has no '生'"),
    ],
)
def test_marks_that_cannot_be_made_end_the_start(
    settings: dict[str, str],
    changed: dict[str, str | None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name, value in changed.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, settings["FADA_C2PA_CERT"] if value == "cert" else value)
    with pytest.raises(SystemExit, match=f"{why}") as ended:
        main(["serve", "--port", "0"])
    assert "\n" not in str(ended.value.code)
