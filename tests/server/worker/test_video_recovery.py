"""Video students whose workers die: the next worker makes the same latents."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.models import Choice, load
from model.pipeline import AvatarPipeline
from model.types import Floats, SessionState, WindowTask
from server.api.protocol import AnimationOptions
from server.broker import messages
from tests.model.video.small_students import write_tiny, write_video
from tests.server.worker.test_recovery import Deaths, Tape, play

RATE = 16_000
OPTIONS = AnimationOptions(size=128, steps=1)


class Recorder:
    """A pipeline that keeps what it made, by window."""

    def __init__(self, pipeline: AvatarPipeline) -> None:
        self.name, self.metadata = pipeline.name, pipeline.metadata
        self.space, self.window_spec = pipeline.space, pipeline.window_spec
        self.start, self._pipeline = pipeline.start, pipeline
        self.made: dict[int, Floats] = {}
        self.again = 0

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        results = self._pipeline.step(tasks)
        for task, (latents, _) in zip(tasks, results, strict=True):
            before = self.made.setdefault(task.window.index, latents)
            self.again += before is not latents
            np.testing.assert_array_equal(before, latents)
        return results


@pytest.fixture(scope="module", params=["video-tiny", "video"])
def recorder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("weights")
    path = write_video(folder) if request.param == "video" else write_tiny(folder / "tiny")
    (pipeline,) = load(Choice((request.param,), path)).values()
    return Recorder(pipeline)


def speech(examples: Path) -> np.ndarray:
    sound, rate = soundfile.read(examples / "speech.wav", dtype="int16")
    assert rate == RATE
    return np.asarray(sound[: round(1.3 * RATE)])


def live(examples: Path, deaths: Deaths, pipeline: AvatarPipeline) -> Tape:
    tape = Tape({"portrait": (examples / "astronaut.jpg").read_bytes()})
    pcm = speech(examples).tobytes()
    for start in range(0, len(pcm), 7_001):
        tape.send_command(messages.AudioChunk(data=pcm[start : start + 7_001]))
    tape.send_command(messages.End())
    request = messages.LiveRequest(
        options=OPTIONS, model=pipeline.name, seed=3, sample_rate=RATE, idle=False
    )
    play(tape, request, deaths, load=lambda: pipeline)
    return tape


def offline(examples: Path, deaths: Deaths, pipeline: AvatarPipeline) -> Tape:
    file = io.BytesIO()
    soundfile.write(file, speech(examples), RATE, format="FLAC")
    portrait = (examples / "astronaut.jpg").read_bytes()
    tape = Tape({"portrait": portrait, "audio": file.getvalue()})
    request = messages.AnimateRequest(options=OPTIONS, model=pipeline.name, seed=3)
    play(tape, request, deaths, load=lambda: pipeline)
    return tape


@pytest.mark.parametrize("make", [live, offline])
def test_a_resumed_session_makes_the_same_latents(
    examples: Path, recorder: Recorder, make: Callable[[Path, Deaths, AvatarPipeline], Tape]
) -> None:
    recorder.made.clear()
    whole = make(examples, [], recorder).video()
    recorder.again = 0
    broken = make(examples, [(2, False), (3, True), (2, False)], recorder)
    assert recorder.again >= len(recorder.made) > 1  # nothing else was made
    seen = broken.video()
    assert len(seen.times_s) == 33  # 1.3 s
    assert seen.times_s == whole.times_s
    assert np.abs(seen.pictures - whole.pictures).max() < 2.0
