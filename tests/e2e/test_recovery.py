"""Sessions of the shipped student whose workers die: the same motion and sound, without a stall."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from engines.select import motion_engine
from model.models import DEFAULT, Choice, load
from model.pipeline import AvatarPipeline
from server.api.protocol import AnimationOptions
from server.broker import messages
from tests.server.service import FAKE, Service, running
from tests.server.stream_client import Stream, stream_to
from tests.server.worker.test_recovery import Deaths, Tape, play

STALL_S = 4.0  # half a second here, but two workers start on the same cores
PATIENCE_S = 180.0  # for a worker that starts beside much else
FAKE_ALONE = {name: value for name, value in FAKE.items() if name != "FADA_WORKERS"}
OPTIONS = AnimationOptions(size=256)


@cache
def real() -> AvatarPipeline:
    return load(Choice((DEFAULT,)), motion_engine=motion_engine)[DEFAULT]


def live(examples: Path, deaths: Deaths) -> Tape:
    sound, rate = soundfile.read(examples / "speech.wav", dtype="int16")
    tape = Tape({"portrait": (examples / "astronaut.jpg").read_bytes()})
    pcm = sound[: 2 * rate].tobytes()
    for start in range(0, len(pcm), 7_001):
        tape.send_command(messages.AudioChunk(data=pcm[start : start + 7_001]))
    tape.send_command(messages.End())
    request = messages.LiveRequest(
        options=OPTIONS, model="motion-fast", seed=3, sample_rate=rate, idle=False
    )
    play(tape, request, deaths, load=real)
    return tape


def offline(examples: Path, deaths: Deaths) -> Tape:
    parts = {"portrait": "astronaut.jpg", "audio": "speech.wav"}
    tape = Tape({part: (examples / name).read_bytes() for part, name in parts.items()})
    request = messages.AnimateRequest(options=OPTIONS, model="motion-fast", seed=3)
    play(tape, request, deaths, load=real)
    return tape


@pytest.mark.parametrize("make", [live, offline])
def test_a_recovered_video_equals_an_undisturbed_one(examples: Path, make: object) -> None:
    assert callable(make)
    whole, broken = make(examples, []), make(examples, [(2, False), (3, True), (4, False)])
    seen, alone = broken.video(), whole.video()
    assert seen.times_s == alone.times_s
    # Mean colours are within what another keyframe changes; the motion itself is far above it.
    assert np.abs(seen.pictures - alone.pictures).max() < 1.0
    assert (seen.sound_s, len(seen.sound)) == (alone.sound_s, len(alone.sound))
    assert np.sqrt(((seen.sound - alone.sound) ** 2).mean()) < 0.1 * alone.sound.std()


def live_workers(service: Service) -> float:
    with service.client() as client:
        match = re.search(r"^fada_workers (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def watch(stream: Stream, until: Callable[[], bool], seconds: float) -> None:
    """Receive fragments until the condition holds."""
    give_up_s = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < give_up_s
        stream.until("fragment")


@pytest.fixture(scope="module", params=[FAKE_ALONE, pytest.param({}, marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """Ready, with all its workers, before the test has its turn alone."""
    with running(request.param) as service:
        deadline = time.monotonic() + PATIENCE_S
        while live_workers(service) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield service


@pytest.mark.realtime
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_by_default_a_session_survives_killed_workers(service: Service, examples: Path) -> None:
    portrait = (examples / "astronaut.jpg").read_bytes()
    with stream_to(service.url) as stream:
        stream.start(portrait, seed=5, idle=True)
        stream.until("fragment")
        workers = service.workers()
        assert len(workers) >= 2
        for worker in workers:  # one of them has the session, and then another
            watch(stream, lambda: live_workers(service) >= 2, PATIENCE_S)
            os.kill(worker, signal.SIGKILL)
            # one that is being started does not count yet
            watch(stream, lambda: live_workers(service) < 2, PATIENCE_S)
        watch(stream, lambda: live_workers(service) >= 2, PATIENCE_S)
        stream.finish()
    indices = [fragment["index"] for fragment in stream.of("fragment")]
    assert indices == list(range(len(indices)))
    assert max(np.diff(stream.times_s)) <= STALL_S
