"""GRID's squares: decoded once, with the points of the whole picture moved into them."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from model.conditioning import SAMPLE_RATE, SAMPLES_PER_FRAME
from model.motion.actions import ACTIONS
from model.portrait.landmarks import FaceTracker
from model.training.track import LANDMARK_INDEX
from model.training.video.grid import grid_clips, is_grid

LENGTHS = (6, 5)
SIZE = 160  # of the square in the picture


@pytest.fixture
def folder(tmp_path: Path, examples: Path) -> Path:
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    picture = np.zeros((288, 360, 3), np.uint8)
    picture[:, 36:324] = cv2.resize(portrait, (288, 288), interpolation=cv2.INTER_AREA)
    face = FaceTracker().find(picture)
    x, y = (max(0, int(v)) for v in face.landmarks[:, :2].mean(0) - SIZE / 2)
    square = cv2.resize(picture[y : y + SIZE, x : x + SIZE], (96, 96))
    total = sum(LENGTHS)
    _write(tmp_path / "face96.mp4", np.asarray(square, np.uint8), total)
    points = face.landmarks[LANDMARK_INDEX, :2] / (360, 288)
    np.savez(
        tmp_path / "motion.npz",
        blendshapes=np.tile(face.coefficients, (total, 1)),
        blendshape_names=np.array(ACTIONS),
        pose=np.tile(np.eye(3, 4), (total, 1, 1)),
        ok=np.arange(total) != 8,
        landmark_index=LANDMARK_INDEX,
        landmarks62_xy=np.tile(points, (total, 1, 1)).astype(np.float32),
        clip=np.array(["a", "b"]),
        start=np.array([0, LENGTHS[0]]),
        text=np.array(["bin blue", "lay red"]),
    )
    mesh = face.landmarks[None] / (360, 288, 360)
    np.savez(tmp_path / "landmarks478_sample.npz", landmarks=mesh)
    index = [["a", 0, LENGTHS[0]], ["b", LENGTHS[0], LENGTHS[1]]]
    (tmp_path / "face96_index.json").write_text(json.dumps(index))
    sound = np.zeros(total * SAMPLES_PER_FRAME)
    soundfile.write(tmp_path / "audio.opus", sound, SAMPLE_RATE, format="OGG", subtype="OPUS")
    np.save(tmp_path / "expected.npy", (points * (360, 288) - (x, y)) / SIZE)
    return tmp_path


def _write(path: Path, picture: NDArray[np.uint8], frames: int) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_squares_are_decoded_once_and_know_where_the_mouth_is(folder: Path) -> None:
    cache = folder / "cache"
    clips = grid_clips(folder, cache, 64)
    assert is_grid(folder) and not is_grid(cache)
    assert [(c.name, c.frames, c.text) for c in clips.clips] == [
        ("a", 6, "bin blue"),
        ("b", 5, "lay red"),
    ]
    assert clips.frames.shape == (11, 64, 64, 3)
    assert clips.clips[0].scores["seen"] == 1.0 > clips.clips[1].scores["seen"]
    expected = np.load(folder / "expected.npy")
    np.testing.assert_allclose(clips.marks[2], expected, atol=0.02)
    (folder / "face96.mp4").rename(folder / "elsewhere.mp4")
    again = grid_clips(folder, cache, 64)
    np.testing.assert_array_equal(again.frames, clips.frames)
    with pytest.raises(ValueError, match="squares of 64 pixels, expected 96"):
        grid_clips(folder, cache, 96)


def test_files_that_disagree_are_refused(folder: Path) -> None:
    (folder / "face96_index.json").write_text(json.dumps([["a", 0, 11]]))
    with pytest.raises(ValueError, match="list other clips"):
        grid_clips(folder, folder / "cache", 64)
