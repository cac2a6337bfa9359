"""Portraits rendered with tracked motion: texts, sound, and pictures that match the landmarks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from model.motion.space import MotionSpace
from model.portrait.blendshapes import ACTIONS, MOTION_DIM
from model.portrait.face_tracker import FaceTracker
from training.data.tracking import LANDMARK_INDEX
from training.video.clips import lip_gaps
from training.video.rendered_clips import load_portraits, portraits_for, render_clip, render_clips
from training.video.windows import training_clips

EXAMPLES = ("astronaut.jpg", "monalisa.jpg", "presenter.jpg")


@pytest.fixture
def portraits(tmp_path: Path, examples: Path) -> Path:
    folder = tmp_path / "portraits"
    folder.mkdir()
    for k in range(10):
        name = EXAMPLES[k % len(EXAMPLES)]
        (folder / f"{k}-{name}").write_bytes((examples / name).read_bytes())
    (folder / "wall.png").write_bytes(_blank())
    return folder


def _blank() -> bytes:
    return cv2.imencode(".png", np.full((64, 64, 3), 200, np.uint8))[1].tobytes()


def test_each_clip_is_rendered_once_with_a_portrait(grid_folder: Path, portraits: Path) -> None:
    clips = render_clips(grid_folder, portraits, grid_folder / "out", side=64)
    assert [clip.frames for clip in clips.clips] == [12, 10, 12, 10]
    assert [clip.confidence for clip in clips.clips] == [1.0, 1.0, 0.5, 0.5]
    for real, rendered in zip(clips.clips[:2], clips.clips[2:], strict=True):
        assert rendered.name.startswith("rendered/") and rendered.name.endswith(real.name)
        assert rendered.text == real.text
        np.testing.assert_array_equal(clips.sound(rendered), clips.sound(real))
    # where the tracker lost the speaker's face, there is no motion to learn from
    assert [clip.name for clip in training_clips(clips)] == []  # shorter than a training window
    assert clips.clips[2].scores["seen"] == 1.0 > clips.clips[3].scores["seen"]
    again = render_clips(grid_folder, portraits, grid_folder / "again", side=64)
    np.testing.assert_array_equal(again.frames, clips.frames)


def test_a_rendered_mouth_is_at_its_landmarks(portraits: Path) -> None:
    found = load_portraits(portraits, 64)
    assert len(found) == 10  # the wall is left out
    motion = np.zeros((8, MOTION_DIM), np.float32)
    motion[:, ACTIONS.index("jawOpen")] = np.linspace(0.0, 0.5, len(motion))
    space, tracker = MotionSpace(), FaceTracker()
    for portrait in found[:3]:
        made = render_clip(space, portrait, motion, random=np.random.default_rng(0))
        frames, marks, coefficients = made.frames, made.marks, made.coefficients
        assert frames.shape == (8, 64, 64, 3) and coefficients.shape == (8, len(ACTIONS))
        assert lip_gaps(marks)[-1] > lip_gaps(marks)[0] + 0.05
        large = cv2.resize(frames[-1], (256, 256), interpolation=cv2.INTER_CUBIC)
        seen = tracker.find(np.asarray(large, np.uint8)).landmarks[LANDMARK_INDEX, :2] / 256
        assert np.linalg.norm(seen - marks[-1], axis=1).mean() < 0.03


def test_held_out_portraits_get_held_out_clips_only(portraits: Path) -> None:
    found = load_portraits(portraits, 64)
    held, others = portraits_for(found, True), portraits_for(found, False)
    assert held == found[9:10] and others == found[:9]


def test_too_few_portraits_are_rejected(grid_folder: Path, portraits: Path) -> None:
    for path in sorted(portraits.iterdir())[:3]:
        path.unlink()
    with pytest.raises(ValueError, match="holds 7 portraits, expected at least 10"):
        render_clips(grid_folder, portraits, grid_folder / "out", side=64)
