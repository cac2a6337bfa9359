"""Track a talking head in video: a face per picture, resampled to 25 frames a second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.portrait.face_tracker import Face, FaceTracker, NoFaceError
from model.rendering.face_model import STABLE, face_basis, fit_similarity
from model.types import FPS, Floats
from training.data.corpus import EYE_CORNERS_CM

# Mesh points that are stored for each frame: lips, eyes, brows, nose and outline.
# fmt: off
LANDMARK_INDEX = np.array([
    0, 1, 4, 10, 13, 14, 17, 33, 37, 39, 40, 61, 70, 78, 80, 81, 82, 84, 87, 88, 91, 95, 105, 107,
    133, 145, 146, 152, 159, 178, 181, 185, 191, 234, 263, 267, 269, 270, 291, 300, 308, 310, 311,
    312, 314, 317, 318, 321, 324, 334, 336, 362, 374, 375, 386, 402, 405, 409, 415, 454, 468, 473,
])
# fmt: on
# MediaPipe's vertical angle of view. A video's own is unknown, but only changes of the pose are
# used.
VIEW_ANGLE = np.radians(63.0)
# Longer gaps between pictures are not interpolated: a mouth may open and close within them.
MAX_GAP_S = 0.12
_SAME_S = 0.002
# From picture axes (y down, z away) to those of the pose (y up, z towards the viewer), and back.
_FLIP = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class TrackedFrame:
    """A tracked face."""

    coefficients: Floats  # (52,) in the order of `ACTIONS`
    pose: NDArray[np.float64]  # (3, 4) rotation, translation in cm; x right, y up, z to the viewer
    points: Floats  # (62, 2) landmarks `LANDMARK_INDEX` in picture widths
    shape: Floats  # (478, 3) frontalised mesh in eye-corner distances; x right, y down, z away


TimedFrame = tuple[float, TrackedFrame | None]  # seconds, and the face if one was found


def tracked_frame(face: Face, width: int, height: int) -> TrackedFrame:
    """Convert a ``face`` found in a picture of ``width`` × ``height`` pixels."""
    marks = face.landmarks.astype(np.float64)
    scale, rotation, shift = fit_similarity(face_basis().canonical[STABLE], marks[STABLE])
    focal = height / 2 / np.tan(VIEW_ANGLE / 2)
    depth = focal * EYE_CORNERS_CM / scale
    aside = (shift[:2] - (width / 2, height / 2)) / focal * depth
    pose = np.empty((3, 4))
    pose[:, :3] = _FLIP[:, None] * rotation * _FLIP
    pose[:, 3] = _FLIP * (*aside, depth)
    return TrackedFrame(
        coefficients=face.coefficients,
        pose=pose,
        points=(marks[LANDMARK_INDEX, :2] / width).astype(np.float32),
        shape=((marks - shift) @ rotation / scale).astype(np.float32),
    )


def track(
    pictures: Iterable[tuple[float, NDArray[np.uint8]]], tracker: FaceTracker
) -> Iterator[TimedFrame]:
    """Follow the largest face through ``pictures``: (seconds, (H, W, 3) RGB), in order."""
    face: Face | None = None
    for time_s, picture in pictures:
        try:
            face = tracker.find(picture) if face is None else tracker.follow(picture, face)
        except NoFaceError:
            face = None
        height, width = picture.shape[:2]
        yield time_s, None if face is None else tracked_frame(face, width, height)


def at_video_rate(faces: Iterable[TimedFrame]) -> Iterator[TrackedFrame | None]:
    """Resample faces at any times from 0 on to 25 a second: frame k is at k/25 s.

    Faces are interpolated between pictures. A frame is ``None`` if no face was found, or if the
    pictures around it are more than `MAX_GAP_S` apart. The result ends with the last picture.
    """
    number = 0
    before: TimedFrame | None = None
    for now in faces:
        while number / FPS < now[0] - _SAME_S:
            yield None if before is None else _between(before, now, number / FPS)
            number += 1
        before = now
    if before is not None and number / FPS <= before[0] + _SAME_S:
        yield before[1]


def _between(before: TimedFrame, after: TimedFrame, time_s: float) -> TrackedFrame | None:
    if time_s <= before[0] + _SAME_S:
        return before[1]
    a, b = before[1], after[1]
    if a is None or b is None or after[0] - before[0] > MAX_GAP_S:
        return None
    part = (time_s - before[0]) / (after[0] - before[0])
    pose = a.pose + part * (b.pose - a.pose)
    pose[:, :3] = nearest_rotation(pose[:, :3])
    return TrackedFrame(
        coefficients=a.coefficients + np.float32(part) * (b.coefficients - a.coefficients),
        pose=pose,
        points=a.points + np.float32(part) * (b.points - a.points),
        shape=a.shape + np.float32(part) * (b.shape - a.shape),
    )


def nearest_rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation (3, 3) closest to ``matrix`` in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    return np.asarray(u @ vt)
