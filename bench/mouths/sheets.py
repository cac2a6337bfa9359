"""Tiles of drawn mouths and eyes, enlarged and joined."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.mouths.drawing import Drawn

Picture = NDArray[np.uint8]
Part = tuple[tuple[int, int], float, float]
# Centre landmarks, width and height in eye-corner distances.
MOUTH = ((13, 14), 0.95, 0.66)
EYES = ((33, 263), 1.40, 0.50)
FACE = ((4, 13), 1.9, 1.9)
GAP = 4  # pixels between tiles


def box(drawn: Drawn, part: Part, *, like: Drawn) -> tuple[int, int, int, int]:
    """x0, y0, width and height around a part of the face, as large as in ``like``."""
    centres, wide, high = part
    points, (rows, columns) = drawn.points, drawn.picture.shape[:2]
    eyes = float(np.linalg.norm(like.points[33] - like.points[263]))
    width, height = min(round(wide * eyes), columns), min(round(high * eyes), rows)
    x, y = points[list(centres)].mean(axis=0) - (width / 2, height / 2)
    return (
        int(np.clip(round(x), 0, columns - width)),
        int(np.clip(round(y), 0, rows - height)),
        width,
        height,
    )


def cut(picture: Picture, at: tuple[int, int, int, int], scale: float = 3.0) -> Picture:
    """The part of ``picture`` in the box, enlarged."""
    x, y, width, height = at
    size = (round(scale * width), round(scale * height))
    return cv2.resize(picture[y : y + height, x : x + width], size, interpolation=cv2.INTER_CUBIC)


def row(tiles: Sequence[Picture]) -> Picture:
    """Side by side on white, top aligned."""
    height = max(t.shape[0] for t in tiles)
    padded = [
        cv2.copyMakeBorder(
            t, 0, height - t.shape[0], 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        for t in tiles
    ]
    return np.hstack(padded)


def column(rows: Sequence[Picture]) -> Picture:
    """One below the other on white, left aligned."""
    width = max(r.shape[1] for r in rows)
    padded = [
        cv2.copyMakeBorder(
            r, 0, GAP, 0, width - r.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        for r in rows
    ]
    return np.vstack(padded)
