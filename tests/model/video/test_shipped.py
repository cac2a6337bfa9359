"""video-tiny as it ships: the man whom it knows opens his mouth to speech, and stays a face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from model.audio.stream import windows_of
from model.models import Choice, load
from model.pipeline import StudentPipeline
from model.portrait.face_tracker import FaceTracker
from model.portrait.image import load_picture
from model.types import SAMPLE_RATE, Floats, WindowTask
from model.video.tiny import PatchCodec
from training.video.metrics import lip_gap, track_video
from training.video.rollout import Pictures

REST_S, SPEECH_S = 0.8, 1.6
FRAMES = 20  # of the rest


@pytest.mark.parametrize(
    "name", ["video-tiny", pytest.param("video-tiny-balanced", marks=pytest.mark.slow)]
)
def test_lips_move_with_speech_and_rest_without(name: str, examples: Path) -> None:
    pipeline = load(Choice((name,)))[name]
    speech, rate = soundfile.read(examples / "speech.wav", dtype="float32")
    assert rate == SAMPLE_RATE
    rest = np.zeros(round(REST_S * rate), np.float32)
    video = made(pipeline, examples, np.concatenate([rest, speech[: round(SPEECH_S * rate)]]))
    looks = track_video(video, FaceTracker())
    assert all(look is not None for look in looks)
    gaps = np.array([lip_gap(look) for look in looks if look is not None])
    assert gaps[FRAMES:].std() > 3 * gaps[: FRAMES - 2].std()
    assert gaps[FRAMES:].max() > gaps[: FRAMES - 2].max() + 0.02


def made(pipeline: StudentPipeline, examples: Path, sound: Floats) -> Pictures:
    """(T, side, side, 3) what ``sound`` makes of GRID's speaker."""
    picture = load_picture((examples / "grid_s1.jpg").read_bytes())
    reference = pipeline.space.encode_reference(picture)
    state, latents = pipeline.start(0), []
    for window in windows_of(sound, pipeline.window_spec):
        task = WindowTask(
            window, state, reference, pipeline.metadata.guidance, pipeline.metadata.steps
        )
        ((new, state),) = pipeline.step([task])
        latents.append(new)
    pixels = PatchCodec(4).decode(torch.from_numpy(np.concatenate(latents).reshape(-1, 48, 16, 16)))
    levels = (127.5 * (pixels + 1)).round().clamp(0, 255).byte()
    return levels.permute(0, 2, 3, 1).numpy()
