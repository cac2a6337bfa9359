"""Folders of clips, made up: a square whose mouth is as open as its hum is loud."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTIONS
from model.portrait.face_tracker import FaceTracker
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME
from training.data.tracking import LANDMARK_INDEX
from training.video.clips import ClipPiece, VideoClips, write_clips

SIDE, CLIPS, FRAMES = 16, 12, 40
GRID_LENGTHS = (12, 10)
GRID_SQUARE = 160  # pixels of the picture


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(number: int, frames: int = FRAMES) -> ClipPiece:
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
    return ClipPiece(f"clip{number}", pictures, sound.astype(np.float32), marks, coefficients, "ah")


@pytest.fixture
def make_piece() -> Callable[..., ClipPiece]:
    return made_up


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> VideoClips:
    folder = tmp_path_factory.mktemp("clips")
    pieces = (made_up(k) for k in range(CLIPS))
    return write_clips(folder, pieces, frames=CLIPS * FRAMES, side=SIDE)


@pytest.fixture(scope="session")
def clips_folder(clips: VideoClips) -> Path:
    return clips.folder


@pytest.fixture
def grid_folder(tmp_path: Path, examples: Path) -> Path:
    """Two still clips of the astronaut, laid down as GRID's; in one the face is lost once."""
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    picture = np.zeros((288, 360, 3), np.uint8)
    picture[:, 36:324] = cv2.resize(portrait, (288, 288), interpolation=cv2.INTER_AREA)
    face = FaceTracker().find(picture)
    x, y = (max(0, int(v)) for v in face.landmarks[:, :2].mean(0) - GRID_SQUARE / 2)
    square = cv2.resize(picture[y : y + GRID_SQUARE, x : x + GRID_SQUARE], (96, 96))
    total = sum(GRID_LENGTHS)
    _write_video(tmp_path / "face96.mp4", np.asarray(square, np.uint8), total)
    points = face.landmarks[LANDMARK_INDEX, :2] / (360, 288)
    np.savez(
        tmp_path / "motion.npz",
        blendshapes=np.tile(face.coefficients, (total, 1)),
        blendshape_names=np.array(ACTIONS),
        pose=np.tile(np.eye(3, 4), (total, 1, 1)),
        ok=np.arange(total) != 14,
        landmark_index=LANDMARK_INDEX,
        landmarks62_xy=np.tile(points, (total, 1, 1)).astype(np.float32),
        clip=np.array(["a", "b"]),
        start=np.array([0, GRID_LENGTHS[0]]),
        text=np.array(["bin blue", "lay red"]),
    )
    mesh = face.landmarks[None] / (360, 288, 360)
    np.savez(tmp_path / "landmarks478_sample.npz", landmarks=mesh)
    index = [["a", 0, GRID_LENGTHS[0]], ["b", GRID_LENGTHS[0], GRID_LENGTHS[1]]]
    (tmp_path / "face96_index.json").write_text(json.dumps(index))
    sound = np.zeros(total * SAMPLES_PER_FRAME)
    soundfile.write(tmp_path / "audio.opus", sound, SAMPLE_RATE, format="OGG", subtype="OPUS")
    np.save(tmp_path / "expected.npy", (points * (360, 288) - (x, y)) / GRID_SQUARE)
    return tmp_path


def _write_video(path: Path, picture: NDArray[np.uint8], frames: int) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
