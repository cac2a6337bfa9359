"""A video student with random parameters in the real service: its picture means nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.model.video.small_students import write_tiny
from tests.server.media_files import sound
from tests.server.media_probe import probe
from tests.server.service import Service, running
from tests.server.stream_client import pcm, run_session


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    weights = write_tiny(tmp_path_factory.mktemp("weights") / "mine.safetensors", shallow=True)
    settings = {
        "FADA_MODELS": "video-tiny",
        "FADA_WEIGHTS": str(weights),
        "FADA_MODEL_NAME": "small",
        "FADA_WORKERS": "1",
    }
    with running(settings) as service:
        yield service


@pytest.fixture(scope="module")
def portrait(examples: Path) -> bytes:
    return (examples / "presenter.jpg").read_bytes()


def test_the_model_is_listed(service: Service) -> None:
    with service.client() as client:
        (model,) = client.get("/models").json()["models"]
    assert (model["name"], model["latent_space"]) == ("small", "video-tiny")
    assert model["steps"] == model["nfe_per_window"] == 2


def test_a_portrait_and_speech_become_a_video(service: Service, portrait: bytes) -> None:
    files = {"portrait": ("p.jpg", portrait), "audio": ("a.flac", sound(1.5))}
    with service.client() as client:
        answers = [
            client.post("/animate", files=files, data={"size": "128", "seed": seed})
            for seed in ("7", "7", "8")
        ]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    assert answers[0].content == answers[1].content
    seen, other = (probe(answer.content) for answer in answers[1:])
    assert (seen.width, seen.height) == (128, 128)
    assert len(seen.times_s) == 38 and seen.video_s == pytest.approx(1.5, abs=0.04)
    assert not np.array_equal(seen.pictures, other.pictures)


def test_an_avatar_talks_live(service: Service, portrait: bytes) -> None:
    chunks = [pcm(0.3), pcm(0.7)]
    start = {"portrait": base64.b64encode(portrait).decode(), "size": 128, "seed": 1}
    stream = run_session(service.url, chunks, **start)
    assert len(stream.video().times_s) == 25
    assert stream.of("done") == [{"type": "done", "frames": 25, "duration_s": 1.0}]
