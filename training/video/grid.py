"""GRID's video as a folder of `clips`: decoded once, its tracked points moved into the squares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.types import Floats
from training.data.corpus import Grid, load_grid
from training.data.tracking import LANDMARK_INDEX
from training.video.clips import ClipPiece, VideoClips, load_clips, write_clips

VIDEO, VIDEO_INDEX = "face96.mp4", "face96_index.json"
_PICTURE = np.array([360.0, 288.0], np.float32)  # its landmarks are fractions of these pixels
_LOOKS = (0.1, 0.5, 0.9)  # where in a clip its square is found
_LOOK_SIDE = 256  # pixels that a square is enlarged to before it is looked at


def is_grid(folder: Path) -> bool:
    """Whether ``folder`` holds GRID's squares."""
    return (folder / VIDEO).is_file()


def grid_clips(folder: Path, cache: Path, side: int) -> VideoClips:
    """The clips of GRID's ``folder`` with squares of ``side`` pixels, made in ``cache`` if need be.

    All clips in which the tracker never lost the face keep their order, so that
    `held_out` means the same as for the motion student. Raises ``ValueError`` for a ``cache`` with
    other squares and for files that disagree.
    """
    if (cache / "clips.json").is_file():
        clips = load_clips(cache)
        if clips.side != side:
            raise ValueError(f"{cache} holds squares of {clips.side} pixels, expected {side}")
        return clips
    grid = load_grid(folder)
    with np.load(folder / "motion.npz") as data:
        points = data["landmarks62_xy"].astype(np.float32) * _PICTURE
        names, starts = [str(n) for n in data["clip"]], data["start"]
        if data["landmark_index"].tolist() != LANDMARK_INDEX.tolist():
            raise ValueError(f"{folder / 'motion.npz'} has other landmarks than are known here")
    index = json.loads((folder / VIDEO_INDEX).read_text())
    lengths = [len(motion) for motion in grid.coefficients]
    if [list(entry) for entry in index] != [
        [n, int(s), k] for n, s, k in zip(names, starts, lengths, strict=True)
    ]:
        raise ValueError(f"{folder}: {VIDEO_INDEX} and motion.npz list other clips")
    pieces = _pieces(folder / VIDEO, grid, np.split(points, starts[1:]), names, side)
    return write_clips(cache, pieces, sum(lengths), side)


def _pieces(
    video: Path, grid: Grid, points: list[Floats], names: list[str], side: int
) -> Iterator[ClipPiece]:
    tracker = FaceTracker()
    squares = _squares(video)
    for c, name in enumerate(tqdm(names, desc=video.name, unit="clip")):
        count = len(grid.coefficients[c])
        raw = np.stack([next(squares) for _ in range(count)])
        seen = grid.usable[c, :count]
        marks = _placed(raw, points[c], seen, tracker)
        yield ClipPiece(
            name,
            np.stack([_resized(square, side) for square in raw]),
            grid.samples[c],
            np.zeros_like(points[c]) if marks is None else marks,
            grid.coefficients[c],
            grid.texts[c],
            scores={"seen": 0.0 if marks is None else float(seen.mean())},
        )


def _squares(video: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of ``video`` as (side, side, 3) RGB. Raises ``ValueError`` if it has no more."""
    reader = cv2.VideoCapture(str(video))
    try:
        while True:
            there, frame = reader.read()
            if not there:
                raise ValueError(f"{video} ends before its last clip")
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
    finally:
        reader.release()


def _resized(square: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    way = cv2.INTER_AREA if side < len(square) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (side, side), interpolation=way), np.uint8)


def _placed(
    squares: NDArray[np.uint8], points: Floats, seen: NDArray[np.bool_], tracker: FaceTracker
) -> Floats | None:
    """(T, 62, 2) ``points`` of the whole picture in sides of the clip's one square, None where no
    face is found in it.

    The square's place is not written anywhere: a few of its frames are tracked anew, and the same
    points in both pictures say where it lies.
    """
    usable = np.flatnonzero(seen)
    ours, theirs = [], []
    for place in _LOOKS:
        if not len(usable):
            break
        t = int(usable[int(place * (len(usable) - 1))])
        try:
            face = tracker.find(_resized(squares[t], _LOOK_SIDE))
        except NoFaceError:
            continue
        ours.append(face.landmarks[LANDMARK_INDEX, :2] / _LOOK_SIDE)
        theirs.append(points[t])
    if not ours:
        return None
    scale, shift = _scale_shift(np.concatenate(theirs), np.concatenate(ours))
    return np.asarray(points * scale + shift, np.float32)


def _scale_shift(source: Floats, target: Floats) -> tuple[float, Floats]:
    """The s and d of least squares for source · s + d = target, both (N, 2)."""
    a, b = source - source.mean(0), target - target.mean(0)
    scale = float((a * b).sum() / (a * a).sum())
    return scale, np.asarray(target.mean(0) - scale * source.mean(0), np.float32)
