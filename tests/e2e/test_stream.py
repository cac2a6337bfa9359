"""A live session with the student that ships: the mouth speaks, is cut short, and rests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.server.media_probe import Probe, probe
from tests.server.service import Service
from tests.server.stream_client import pcm, run_session, stream_to


@pytest.fixture(scope="module")
def portrait(examples: Path) -> bytes:
    return (examples / "astronaut.jpg").read_bytes()


@pytest.fixture(scope="module")
def speech(examples: Path) -> bytes:
    """The first two seconds of the example, which are at 16 kHz."""
    sound, rate = soundfile.read(examples / "speech.wav", dtype="int16")
    assert rate == 16_000
    return bytes(sound[:32_000].tobytes())


def correlation(seen: Probe, pcm: bytes) -> float:
    """The correlation of the video's sound with the sound that was sent."""
    sent = np.frombuffer(pcm, "<i2").astype(np.float32)
    received = seen.sound[:: seen.rate // 16_000][: len(sent)]
    return float(np.corrcoef(received, sent[: len(received)])[0, 1])


def test_a_portrait_talks_live(service: Service, portrait: bytes, speech: bytes) -> None:
    chunks = [speech[i : i + 3_201] for i in range(0, len(speech), 3_201)]
    stream = run_session(service.url, chunks, portrait_file=portrait, size=256, seed=1)
    seen = stream.video()
    assert (seen.width, seen.height) == (256, 256)
    assert seen.video_s == pytest.approx(2.0, abs=0.041)
    assert seen.sound_s == pytest.approx(2.0, abs=0.001)
    assert correlation(seen, speech) > 0.9
    assert np.ptp(seen.pictures, axis=0).max() > 0.3  # the picture moves
    whole = run_session(service.url, [speech], portrait_file=portrait, size=256, seed=1)
    assert whole.data == stream.data


def test_a_live_session_shows_what_animate_shows(
    service: Service, portrait: bytes, speech: bytes, tmp_path: Path
) -> None:
    live = run_session(service.url, [speech], portrait_file=portrait, size=128, seed=3).video()
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.frombuffer(speech, "<i2"), 16_000)
    with service.client() as client:
        answer = client.post(
            "/animate",
            files={"portrait": ("p", portrait), "audio": ("a", path.read_bytes())},
            data={"size": "128", "seed": "3"},
        )
    offline = probe(answer.content)
    assert np.abs(live.pictures - offline.pictures).max() < 1.0


def test_an_interrupted_session_rests_and_can_speak_again(
    service: Service, portrait: bytes, speech: bytes
) -> None:
    with stream_to(service.url) as stream:
        stream.start(portrait, size=128, seed=1, idle=True)
        stream.send_audio(speech * 3)
        while sum(f["kind"] == "speech" for f in stream.of("fragment")) < 6:
            stream.until("fragment")
        before = len(stream.of("fragment"))
        stream.send("interrupt")
        stream.until("interrupted")
        late = [f for f in stream.of("fragment")[before:] if f["kind"] == "speech"]
        assert sum(f["duration_s"] for f in late) <= 0.25
        for _ in range(4):
            assert stream.until("fragment")["kind"] == "idle"
        stream.send_audio(pcm(0.5))
        while stream.until("fragment")["kind"] == "idle":
            pass
        done = stream.finish()
    seen = stream.video()
    assert seen.video_s == pytest.approx(done["duration_s"], abs=0.041)
    assert np.diff(seen.times_s) == pytest.approx(0.04)
    steps = np.abs(np.diff(seen.pictures, axis=0)).max(axis=1)
    assert steps.max() < 3.0  # no frame jumps away from the one before
