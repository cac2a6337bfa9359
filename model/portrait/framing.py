"""The part of a picture that the video shows, and the map from its pixels to the video's."""

from __future__ import annotations

from collections.abc import Sequence
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
BELOW_CHIN = 0.42  # neck and collar that the frame should show
CLOSEST = 1.15  # the least side of the frame
HAIR_CUT = 0.6  # of what a small picture does not hold, the share above the face


_FAR = 1 << 30  # without a face


@dataclass(frozen=True)
class Frame:
    """Pixel (x, y) of the picture lies at ((x, y) - corner) * scale in the video's frame.

    ``clear``: pixels between the face and the picture's left, top, right and bottom border.
    """

    corner: tuple[float, float]
    scale: float
    width: int
    height: int
    clear: tuple[int, int, int, int] = (_FAR,) * 4

    def place(self, points: Floats) -> Floats:
        """Points (N, 2) or (N, 3) of the picture, in the frame's pixels; depth scales alike."""
        moved = points.astype(np.float32).copy()
        moved[:, :2] -= np.array(self.corner, np.float32)
        return moved * np.float32(self.scale)

    def cut(self, picture: NDArray[np.generic], pad: int) -> NDArray[np.generic]:
        """The framed part with ``pad`` pixels around it: real ones where the picture has them.

        Beyond the border the picture is mirrored as far as the face, and then held: no mirror shows
        a second mouth.
        """
        corner = self.corner
        beyond = self._beyond(picture, pad)
        if any(need > clear for need, clear in zip(beyond, self.clear, strict=True)):
            picture = _extended(picture, beyond, self.clear)
            corner = corner[0] + beyond[0], corner[1] + beyond[1]
        matrix = np.array(
            [
                [self.scale, 0.0, pad - corner[0] * self.scale],
                [0.0, self.scale, pad - corner[1] * self.scale],
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

    def _beyond(self, picture: NDArray[np.generic], pad: int) -> tuple[int, int, int, int]:
        """Pixels that are needed beyond the picture's left, top, right and bottom border."""
        (left, top), room = self.corner, pad / self.scale
        right = left + self.width / self.scale - picture.shape[1]
        bottom = top + self.height / self.scale - picture.shape[0]
        needs = (max(0.0, side + room) for side in (-left, -top, right, bottom))
        return tuple(int(np.ceil(need)) + 2 if need else 0 for need in needs)  # type: ignore[return-value]


def _extended(
    picture: NDArray[np.generic], beyond: Sequence[int], clear: Sequence[int]
) -> NDArray[np.generic]:
    """``picture`` with ``beyond`` more pixels on each side: its outermost ``clear``, mirrored."""

    def indices(length: int, axis: int) -> NDArray[np.intp]:
        place = np.arange(-beyond[axis], length + beyond[axis + 2])
        before = np.minimum(-place, clear[axis])
        after = length - 1 - np.minimum(place - (length - 1), clear[axis + 2])
        inner = np.where(place < 0, before, np.where(place >= length, after, place))
        return np.clip(inner, 0, length - 1)

    return picture[indices(picture.shape[0], 1)][:, indices(picture.shape[1], 0)]


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
    clear = _clear(width, height, landmarks)
    if framing == "full":
        scale = size / max(width, height)
        return Frame((0.0, 0.0), scale, _even(width * scale), _even(height * scale), clear)
    left, top, side = _portrait_square(width, height, landmarks=landmarks, person=person)
    return Frame((left, top), size / side, size, size, clear)


def _clear(width: int, height: int, landmarks: Floats) -> tuple[int, int, int, int]:
    """See `Frame`; 0 where the border cuts the face."""
    face = landmarks[:FACE_LANDMARKS, :2]
    (left, top), (right, bottom) = face.min(axis=0), face.max(axis=0)
    sides = left, top, width - 1 - right, height - 1 - bottom
    return tuple(max(0, int(side)) for side in sides)  # type: ignore[return-value]


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
    # Stay inside the picture, where the face fits: hair or neck is cut before anything is invented.
    room = float(min(width, height))
    side = min(side, room) if room >= CLOSEST * tall else min(need, float(max(width, height)))
    spare = side - need
    top = hair - ABOVE_HAIR * tall - (0.25 if spare > 0 else HAIR_CUT) * spare
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
