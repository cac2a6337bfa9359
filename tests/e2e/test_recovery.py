"""The student that ships, whose workers die: the same motion, in the same sound."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from engines.registry import load_pipeline
from model.pipeline import AvatarPipeline
from server.broker import messages
from server.protocol import AnimationOptions
from tests.server.worker.test_recovery import Deaths, Tape, play

OPTIONS = AnimationOptions(size=256)
loaded = cache(load_pipeline)


def real() -> AvatarPipeline:
    return loaded("motion-fast")


def live(examples: Path, deaths: Deaths) -> Tape:
    sound, rate = soundfile.read(examples / "speech.wav", dtype="int16")
    tape = Tape({"portrait": (examples / "astronaut.jpg").read_bytes()})
    said = sound[: 2 * rate].tobytes()
    for start in range(0, len(said), 7_001):
        tape.tell(messages.Sound(data=said[start : start + 7_001]))
    tape.tell(messages.End())
    request = messages.LiveRequest(
        options=OPTIONS, model="motion-fast", seed=3, sample_rate=rate, idle=False
    )
    play(tape, request, deaths, real)
    return tape


def offline(examples: Path, deaths: Deaths) -> Tape:
    parts = {"portrait": "astronaut.jpg", "audio": "speech.wav"}
    tape = Tape({part: (examples / name).read_bytes() for part, name in parts.items()})
    request = messages.AnimateRequest(options=OPTIONS, model="motion-fast", seed=3)
    play(tape, request, deaths, real)
    return tape


@pytest.mark.parametrize("make", [live, offline])
def test_the_video_is_the_one_that_an_undisturbed_worker_makes(
    examples: Path, make: object
) -> None:
    assert callable(make)
    whole, broken = make(examples, []), make(examples, [(2, False), (3, True), (4, False)])
    seen, alone = broken.video(), whole.video()
    assert seen.times_s == alone.times_s
    # Mean colours are within what another keyframe changes; the motion itself is far above it.
    assert np.abs(seen.pictures - alone.pictures).max() < 1.0
    assert (seen.sound_s, len(seen.sound)) == (alone.sound_s, len(alone.sound))
    assert np.sqrt(((seen.sound - alone.sound) ** 2).mean()) < 0.1 * alone.sound.std()
