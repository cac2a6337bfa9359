"""The part of a picture that the video shows, and the map from its pixels to the video's."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import FACE_LANDMARKS
from model.types import Floats

FRAMINGS = ("portrait", "full")
MIN_SIZE, MAX_SIZE = 128, 1024

# In heights of the face (forehead to chin, as the mesh sees it), for `portrait`:
WANTED_SIDE = 2.1
ABOVE_HAIR = 0.14  # free room above the highest hair
BELOW_CHIN = 0.42  # neck and collar that the frame must show


@dataclass(frozen=True)
class Frame:
    """Pixel (x, y) of the picture lies at ((x, y) - corner) * scale in the video's frame."""

    corner: tuple[float, float]
    scale: float
    width: int
    height: int

    def place(self, points: Floats) -> Floats:
        """Points (N, 2) or (N, 3) of the picture, in the frame's pixels; depth scales alike."""
        moved = points.astype(np.float32).copy()
        moved[:, :2] -= np.array(self.corner, np.float32)
        return moved * np.float32(self.scale)

    def cut(self, picture: NDArray[np.generic], pad: int) -> NDArray[np.generic]:
        """The framed part with ``pad`` pixels around it: real ones where the picture has them."""
        matrix = np.array(
            [
                [self.scale, 0.0, pad - self.corner[0] * self.scale],
                [0.0, self.scale, pad - self.corner[1] * self.scale],
            ]
        )
        # Pixel centres: a picture shrunk by area keeps its edges where they were.
        matrix[:, 2] += 0.5 * self.scale - 0.5
        flags = cv2.INTER_CUBIC if self.scale > 1.0 else cv2.INTER_LINEAR
        if self.scale < 0.5:
            factor = 2.0 * self.scale
            size = (
                max(1, round(picture.shape[1] * factor)),
                max(1, round(picture.shape[0] * factor)),
            )
            shrunk = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            matrix[:, 0] *= picture.shape[1] / size[0]
            matrix[:, 1] *= picture.shape[0] / size[1]
            picture = shrunk
        size = (self.width + 2 * pad, self.height + 2 * pad)
        return cv2.warpAffine(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def frame(
    framing: str, size: int, *, width: int, height: int, landmarks: Floats, person: Floats
) -> Frame:
    """The frame of a ``width`` x ``height`` picture for a video whose long side is ``size``.

    ``landmarks`` (478, 3) pixels; ``person`` (h, w) 0..1, any resolution. Raises ``ValueError``
    for an unknown framing or a size that is odd or out of range.
    """
    if framing not in FRAMINGS:
        raise ValueError(f"framing = {framing!r}, expected one of {', '.join(FRAMINGS)}")
    if not MIN_SIZE <= size <= MAX_SIZE or size % 2:
        raise ValueError(f"size = {size}, expected an even number, {MIN_SIZE} to {MAX_SIZE}")
    if framing == "full":
        scale = size / max(width, height)
        return Frame((0.0, 0.0), scale, _even(width * scale), _even(height * scale))
    left, top, side = _portrait_square(width, height, landmarks=landmarks, person=person)
    return Frame((left, top), size / side, size, size)


def _portrait_square(
    width: int, height: int, *, landmarks: Floats, person: Floats
) -> tuple[float, float, float]:
    face = landmarks[:FACE_LANDMARKS, :2]
    low, high = face.min(axis=0), face.max(axis=0)
    tall = float(max(high[1] - low[1], 0.9 * (high[0] - low[0])))
    middle = float((low[0] + high[0]) / 2)
    hair = _highest_hair(width, height, low=low, high=high, person=person)
    need = (float(high[1]) + BELOW_CHIN * tall) - (hair - ABOVE_HAIR * tall)
    side = max(WANTED_SIDE * tall, need)
    # Stay inside the picture as far as hair and neck allow; beyond that the border is mirrored.
    side = max(min(side, float(min(width, height))), min(need, float(max(width, height))))
    spare = max(0.0, side - need)
    top = hair - ABOVE_HAIR * tall - 0.25 * spare
    left = middle - side / 2
    return _inside(left, side, width), _inside(top, side, height), side


def _highest_hair(width: int, height: int, *, low: Floats, high: Floats, person: Floats) -> float:
    """The top of the hair, in pixels: from the face upwards as far as the mask holds the person."""
    rows, columns = person.shape
    x0, x1 = (np.array([low[0], high[0]]) / width * columns).astype(int)
    band = person[:, max(0, x0) : max(x1, x0 + 1)].max(axis=1, initial=0.0) > 0.5
    row = int(np.clip(low[1] / height * rows, 0, rows - 1))
    while row > 0 and band[row - 1]:
        row -= 1
    # At least a bald head above the mesh's forehead, and no endless column of mask.
    tall = float(high[1] - low[1])
    hair = row / rows * height
    return float(np.clip(hair, low[1] - 1.1 * tall, low[1] - 0.22 * tall))


def _inside(start: float, length: float, limit: float) -> float:
    """Shift [start, start + length) into [0, limit) where it fits, else centre it there."""
    if length >= limit:
        return (limit - length) / 2
    return min(max(start, 0.0), limit - length)


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))
