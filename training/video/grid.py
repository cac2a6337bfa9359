"""GRID's video as a folder of clips (`training.video.clips`).

The video is decoded once; the landmarks are mapped from the whole picture into the squares.
"""

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
_PICTURE = np.array([360.0, 288.0], np.float32)  # pixels; landmarks are fractions of them
_LOCATED_AT = (0.1, 0.5, 0.9)  # positions in a clip where its square is located
_TRACKING_SIDE = 256  # pixels to which a square is enlarged for the tracker


def open_clips(data: Path, cache: Path, side: int) -> VideoClips:
    """Open GRID's folder, or one of ``fada dataset build``.

    GRID's frames are decoded into ``cache`` once, as squares of ``side`` pixels.
    """
    if (data / VIDEO).is_file():
        return grid_clips(data, cache, side)
    return load_clips(data)


def grid_clips(folder: Path, cache: Path, side: int) -> VideoClips:
    """GRID's clips as squares of ``side`` pixels, decoded into ``cache`` if they are not there.

    Clips keep their order, so `held_out` selects the same ones as for the motion student. Raises
    ``ValueError`` for a ``cache`` of another side and for files that disagree.
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
            raise ValueError(f"{folder / 'motion.npz'}: landmark_index differs from LANDMARK_INDEX")
    index = json.loads((folder / VIDEO_INDEX).read_text())
    lengths = [len(motion) for motion in grid.coefficients]
    if [list(entry) for entry in index] != [
        [n, int(s), k] for n, s, k in zip(names, starts, lengths, strict=True)
    ]:
        raise ValueError(f"{folder}: {VIDEO_INDEX} and motion.npz list other clips")
    by_clip = np.split(points, starts[1:])
    pieces = _pieces(folder / VIDEO, grid, by_clip, names=names, side=side)
    return write_clips(cache, pieces, frames=sum(lengths), side=side)


def _pieces(
    video: Path, grid: Grid, points: list[Floats], *, names: list[str], side: int
) -> Iterator[ClipPiece]:
    tracker = FaceTracker()
    squares = _squares(video)
    for c, name in enumerate(tqdm(names, desc=video.name, unit="clip")):
        count = len(grid.coefficients[c])
        raw = np.stack([next(squares) for _ in range(count)])
        seen = grid.usable[c, :count]
        marks = _marks_in_square(raw, points[c], seen, tracker=tracker)
        yield ClipPiece(
            name=name,
            frames=np.stack([_resized(square, side) for square in raw]),
            samples=grid.samples[c],
            marks=np.zeros_like(points[c]) if marks is None else marks,
            coefficients=grid.coefficients[c],
            text=grid.texts[c],
            scores={"seen": 0.0 if marks is None else float(seen.mean())},
        )


def _squares(video: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of ``video``, (side, side, 3) RGB. Raises ``ValueError`` at its end."""
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


def _marks_in_square(
    squares: NDArray[np.uint8],
    points: Floats,
    seen: NDArray[np.bool_],
    *,
    tracker: FaceTracker,
) -> Floats | None:
    """Landmarks ``points`` (T, 62, 2) of the whole picture in sides of the clip's square.

    The files do not state where the square lies, so a few of its frames are tracked again and
    matched by their landmarks. None if no face is found.
    """
    usable = np.flatnonzero(seen)
    ours, theirs = [], []
    for place in _LOCATED_AT:
        if not len(usable):
            break
        t = int(usable[int(place * (len(usable) - 1))])
        try:
            face = tracker.find(_resized(squares[t], _TRACKING_SIDE))
        except NoFaceError:
            continue
        ours.append(face.landmarks[LANDMARK_INDEX, :2] / _TRACKING_SIDE)
        theirs.append(points[t])
    if not ours:
        return None
    scale, shift = _scale_shift(np.concatenate(theirs), np.concatenate(ours))
    return np.asarray(points * scale + shift, np.float32)


def _scale_shift(source: Floats, target: Floats) -> tuple[float, Floats]:
    """Least-squares s and d with source · s + d = target, both (N, 2)."""
    a, b = source - source.mean(0), target - target.mean(0)
    scale = float((a * b).sum() / (a * a).sum())
    return scale, np.asarray(target.mean(0) - scale * source.mean(0), np.float32)
