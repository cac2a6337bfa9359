"""A tracked folder in the corpus's own layout, small and made up: a hum whose level opens a jaw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.portrait.blendshapes import ACTIONS
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME

CLIPS, FRAMES = 20, 75


@pytest.fixture(scope="session")
def grid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    random = np.random.default_rng(0)
    names = ["_neutral", *ACTIONS[:-1]]
    total = CLIPS * FRAMES
    frame = np.arange(total) % FRAMES
    speaking = (frame > 12) & (frame < 62)
    level = speaking * (0.5 + 0.5 * np.sin(2 * np.pi * frame / 9))
    coefficients = 0.02 * random.random((total, 52))
    coefficients[:, names.index("jawOpen")] = 0.02 + 0.4 * level
    coefficients[:, names.index("eyeBlinkLeft")] = 0.1 + 0.6 * (frame == 30)
    pose = np.tile(np.eye(3, 4), (total, 1, 1))
    pose[:, :, 3] = [0, 0, -40] + 0.1 * random.standard_normal((total, 3))
    points = np.full((total, 4, 2), 0.5)
    points[:, 0, 0], points[:, 1, 0] = 0.4, 0.6  # the outer eye corners, 72 pixels apart
    points[:, 3, 1] = 0.5 + 0.13 * (coefficients[:, names.index("jawOpen")] - 0.02)
    np.savez(
        folder / "motion.npz",
        blendshapes=coefficients.astype(np.float16),
        blendshape_names=np.array(names),
        pose=pose.astype(np.float16),
        ok=np.ones(total, bool),
        landmark_index=np.array([33, 263, 13, 14]),
        landmarks62_xy=points.astype(np.float32),
        clip=np.array([f"c{i}" for i in range(CLIPS)]),
        start=np.arange(CLIPS) * FRAMES,
        text=np.array(["bin blue at f two now"] * CLIPS),
    )
    np.savez(
        folder / "landmarks478_sample.npz",
        landmarks=random.random((3, 478, 3)).astype(np.float32),
    )
    t = np.arange(total * SAMPLES_PER_FRAME) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    sound = 0.1 * np.repeat(level, SAMPLES_PER_FRAME) * hum
    sound += 0.001 * random.standard_normal(len(t))
    soundfile.write(folder / "audio.opus", sound, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return folder
