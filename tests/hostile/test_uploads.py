"""No file crashes a worker or disturbs other clients."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.files import LEFT, RIGHT, UNUSED, integer_floats, nameless_codec, quicktime
from tests.server.media_files import encoded_sound, picture
from tests.server.media_probe import probe
from tests.server.rest_client import animate, problem
from tests.server.service import Service


@pytest.mark.parametrize("labels", [(RIGHT, LEFT), (LEFT, RIGHT), (UNUSED, UNUSED), (7, 9), (1,)])
def test_channels_in_any_order(unharmed: Service, labels: tuple[int, ...]) -> None:
    """PyAV 17.1 to 18 free such a layout twice: one upload crashed two workers."""
    with unharmed.client() as client:
        for _ in range(3):
            answer = animate(client, audio=quicktime(labels))
            if answer.status_code == 200:
                assert probe(answer.content).video_s == pytest.approx(0.52, abs=0.021)
            else:
                assert problem(answer) == (415, "unsupported_media")
        assert animate(client).status_code == 200


def test_unknown_codecs(unharmed: Service) -> None:
    with unharmed.client() as client:
        assert problem(animate(client, audio=nameless_codec())) == (415, "unsupported_media")


def test_sound_that_was_repaired_is_named(unharmed: Service) -> None:
    with unharmed.client() as client:
        answer = animate(client, audio=integer_floats())
        assert "integers of 16 bits" in answer.headers["X-Warning"]
        assert probe(answer.content).video_s == pytest.approx(0.52, abs=0.021)
        assert "X-Warning" not in animate(client).headers


def test_joined_files_are_one_speech(unharmed: Service) -> None:
    audio = encoded_sound(0.3, "mp3") + encoded_sound(0.3, "mp3", rate=24_000)
    with unharmed.client() as client:
        answer = animate(client, audio=audio)
        assert probe(answer.content).video_s == pytest.approx(0.6, abs=0.06)


# Of the first, the codec's name is damaged as well.
UNDECODABLE = ("changes_within.mkv", "codec_none.m4a", "webm_unknown_codec.webm")


def test_every_known_bad_file(service: Service, cases: Path) -> None:
    workers = service.workers()
    with service.client() as client:
        for path in sorted(cases.iterdir()):
            blob = path.read_bytes()
            shown = path.suffix in (".jpg", ".png")
            answer = animate(client, portrait=blob) if shown else animate(client, audio=blob)
            if path.name in UNDECODABLE:
                assert problem(answer) == (415, "unsupported_media"), path.name
                continue
            assert answer.status_code == 200, (path.name, answer.text)
            if not shown:
                seconds = 0.12 if path.name == "crash_channels_R_L.mov" else 3.0
                assert probe(answer.content).video_s == pytest.approx(seconds, abs=0.05), path.name
    assert service.workers() == workers


KINDS = {
    **{kind: encoded_sound(0.3, kind) for kind in ("wav", "flac", "mp3", "ogg", "m4a", "webm")},
    **{kind: picture(kind=kind) for kind in ("PNG", "JPEG", "WEBP")},
}


@settings(
    max_examples=40, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32), cut=st.booleans())
def test_mutated_files(service: Service, kind: str, seed: int, cut: bool) -> None:
    random = np.random.default_rng(seed)
    blob = bytearray(KINDS[kind])
    for at in random.integers(0, len(blob), random.integers(1, 30)):
        blob[at] = random.integers(0, 256)
    if cut:
        del blob[random.integers(1, len(blob)) :]
    workers = service.workers()
    with service.client() as client:
        shown = kind.isupper()
        file = bytes(blob)
        with contextlib.suppress(httpx.RemoteProtocolError):
            answer = animate(client, portrait=file) if shown else animate(client, audio=file)
            assert answer.status_code in (200, 413, 415, 422), answer.text
    assert service.workers() == workers
