"""Folders of clips, made up: a square whose mouth is as open as its hum is loud."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.conditioning import SAMPLE_RATE, SAMPLES_PER_FRAME
from model.motion.actions import ACTIONS
from model.training.track import LANDMARK_INDEX
from model.training.video.clips import Piece, VideoClips, write_clips

SIDE, CLIPS, FRAMES = 16, 12, 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(number: int, frames: int = FRAMES) -> Piece:
    """A clip in which all of picture, points, coefficients and sound follow one level."""
    random = np.random.default_rng(number)
    level = (0.5 + 0.5 * np.sin(np.arange(frames) / 2 + number)).astype(np.float32)
    pictures = np.full((frames, SIDE, SIDE, 3), 120 + number, np.uint8)
    pictures[:, 11:13, 6:10, 0] = (100 + 120 * level).astype(np.uint8)[:, None, None]
    marks = np.full((frames, len(LANDMARK_INDEX), 2), 0.5, np.float32)
    for point, x, y in ((33, 0.3, 0.4), (263, 0.7, 0.4), (61, 0.4, 0.75), (291, 0.6, 0.75)):
        marks[:, point == LANDMARK_INDEX] = (x, y)
    marks[:, LANDMARK_INDEX == 13, 1] = 0.74
    marks[:, LANDMARK_INDEX == 14, 1] = 0.75 + 0.1 * level[:, None]
    coefficients = 0.02 * random.random((frames, len(ACTIONS)), np.float32)
    coefficients[:, ACTIONS.index("jawOpen")] = 0.4 * level
    t = np.arange(frames * SAMPLES_PER_FRAME) / SAMPLE_RATE
    hum = np.sum([np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12)], axis=0)
    sound = 0.2 * np.repeat(level, SAMPLES_PER_FRAME) * hum
    return Piece(f"clip{number}", pictures, sound.astype(np.float32), marks, coefficients, "ah")


@pytest.fixture
def make_piece() -> Callable[..., Piece]:
    return made_up


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> VideoClips:
    folder = tmp_path_factory.mktemp("clips")
    return write_clips(folder, (made_up(k) for k in range(CLIPS)), CLIPS * FRAMES, SIDE)


@pytest.fixture(scope="session")
def clips_folder(clips: VideoClips) -> Path:
    return clips.folder
