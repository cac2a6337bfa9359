"""A talking head on video as motion: what is seen in each picture, 25 times a second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.portrait.face_tracker import Face, FaceTracker, NoFaceError
from model.rendering.face_model import STABLE, face_basis, fit_similarity
from model.types import FPS, Floats
from training.data.corpus import EYE_CORNERS_CM

# The points of the mesh that the layout keeps a frame: lips, eyes, brows, nose and outline.
# fmt: off
LANDMARK_INDEX = np.array([
    0, 1, 4, 10, 13, 14, 17, 33, 37, 39, 40, 61, 70, 78, 80, 81, 82, 84, 87, 88, 91, 95, 105, 107,
    133, 145, 146, 152, 159, 178, 181, 185, 191, 234, 263, 267, 269, 270, 291, 300, 308, 310, 311,
    312, 314, 317, 318, 321, 324, 334, 336, 362, 374, 375, 386, 402, 405, 409, 415, 454, 468, 473,
])
# fmt: on
# MediaPipe's virtual camera: its vertical angle of view. The true one is not known of a video;
# only changes of the pose are ever used.
VIEW_ANGLE = np.radians(63.0)
# Pictures further apart than this are not bridged: a mouth opens and shuts in between.
LONGEST_GAP_S = 0.12
_SAME_S = 0.002
# picture axes (y down, z away) to the pose's (y up, z towards the viewer), and back
_FLIP = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class TrackedFrame:
    """One face at one time.

    ``coefficients`` (52,) in the order of `ACTIONS`; ``pose`` (3, 4) rotation of the canonical
    face and its place in centimetres (x right, y up, z towards the viewer); ``points`` (62, 2)
    `LANDMARK_INDEX` in picture widths; ``shape`` (478, 3) the mesh turned to the front, in
    distances of the outer eye corners (x right, y down, z away).
    """

    coefficients: Floats
    pose: NDArray[np.float64]
    points: Floats
    shape: Floats


Seen = tuple[float, TrackedFrame | None]  # seconds, and the face if there was one


def look_of(face: Face, width: int, height: int) -> TrackedFrame:
    """What a tracked ``face`` shows in a picture of ``width`` × ``height`` pixels."""
    marks = face.landmarks.astype(np.float64)
    scale, rotation, shift = fit_similarity(face_basis().canonical[STABLE], marks[STABLE])
    focal = height / 2 / np.tan(VIEW_ANGLE / 2)
    depth = focal * EYE_CORNERS_CM / scale
    aside = (shift[:2] - (width / 2, height / 2)) / focal * depth
    pose = np.empty((3, 4))
    pose[:, :3] = _FLIP[:, None] * rotation * _FLIP
    pose[:, 3] = _FLIP * (*aside, depth)
    return TrackedFrame(
        face.coefficients,
        pose,
        (marks[LANDMARK_INDEX, :2] / width).astype(np.float32),
        ((marks - shift) @ rotation / scale).astype(np.float32),
    )


def looks(
    pictures: Iterable[tuple[float, NDArray[np.uint8]]], tracker: FaceTracker
) -> Iterator[Seen]:
    """Follows the largest face through ``pictures``: (seconds, (H, W, 3) RGB), times rising."""
    face: Face | None = None
    for time_s, picture in pictures:
        try:
            face = tracker.find(picture) if face is None else tracker.follow(picture, face)
        except NoFaceError:
            face = None
        height, width = picture.shape[:2]
        yield time_s, None if face is None else look_of(face, width, height)


def at_video_rate(seen: Iterable[Seen]) -> Iterator[TrackedFrame | None]:
    """Looks at any times, counted from 0, as 25 a second: frame k is what is seen at k/25 s.

    Between two pictures the look is interpolated, so no rate of pictures adds jitter. ``None``
    where no face was seen, or no picture for longer than `LONGEST_GAP_S`. The result ends with
    the last picture.
    """
    number = 0
    before: Seen | None = None
    for now in seen:
        while number / FPS < now[0] - _SAME_S:
            yield None if before is None else _between(before, now, number / FPS)
            number += 1
        before = now
    if before is not None and number / FPS <= before[0] + _SAME_S:
        yield before[1]


def _between(before: Seen, after: Seen, time_s: float) -> TrackedFrame | None:
    if time_s <= before[0] + _SAME_S:
        return before[1]
    a, b = before[1], after[1]
    if a is None or b is None or after[0] - before[0] > LONGEST_GAP_S:
        return None
    part = (time_s - before[0]) / (after[0] - before[0])
    pose = a.pose + part * (b.pose - a.pose)
    pose[:, :3] = nearest_rotation(pose[:, :3])
    return TrackedFrame(
        a.coefficients + np.float32(part) * (b.coefficients - a.coefficients),
        pose,
        a.points + np.float32(part) * (b.points - a.points),
        a.shape + np.float32(part) * (b.shape - a.shape),
    )


def nearest_rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) the rotation closest to ``matrix`` in the sum of squares."""
    u, _, vt = np.linalg.svd(matrix)
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    return np.asarray(u @ vt)
