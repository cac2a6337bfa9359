"""How wide a face's lips stand apart."""

from __future__ import annotations

import numpy as np
import pytest

from model.portrait.blendshapes import ACTION_COUNT, ACTIONS
from model.rendering.face_model import LOWER_ROWS, UPPER_ROWS, FaceShape, face_basis
from model.types import Floats

# Of the tracked speaker (GRID s1): how far his inner lips are apart, in eye-corner distances, and
# the means of those actions that part or close them while they are.
TRACKED = {
    0.05: {"jawOpen": 0.129, "mouthClose": 0.045, "mouthRollUpper": 0.070, "mouthPucker": 0.057},
    0.11: {"jawOpen": 0.242, "mouthClose": 0.027, "mouthRollUpper": 0.102},
    0.15: {"jawOpen": 0.324, "mouthClose": 0.021, "mouthRollUpper": 0.062},
}


def common_face() -> Floats:
    points = np.zeros((478, 3), np.float32)
    points[:468] = 100 * face_basis().canonical
    points[LOWER_ROWS[0]] = points[UPPER_ROWS[0]]  # lips that meet
    return points


def shaped(**actions: float) -> Floats:
    coefficients = np.zeros(ACTION_COUNT, np.float32)
    for name, value in actions.items():
        coefficients[ACTIONS.index(name)] = value
    return coefficients


def gap(points: Floats) -> Floats:
    """(9,) of the lips' columns, head units."""
    return points[LOWER_ROWS[0], 1] - points[UPPER_ROWS[0], 1]


@pytest.mark.parametrize("tracked", TRACKED)
def test_lips_part_as_far_as_a_speakers_do(tracked: float) -> None:
    face = FaceShape(common_face(), shaped())
    drawn = gap(face.deform(shaped(**TRACKED[tracked])))[4]
    assert drawn == pytest.approx(tracked, abs=0.008)


@pytest.mark.parametrize("jaw", [0.02, 0.05, 0.1, 0.2, 0.5])
def test_what_a_portraits_rest_means_is_the_opening_seen(jaw: float) -> None:
    """The tracker may say of parted lips that they are closed; drawn again, they are not."""
    nothing = shaped()
    face = FaceShape(common_face(), nothing)
    parted = face.deform(shaped(jawOpen=jaw))
    misread = FaceShape(100 * parted, nothing)
    middle = slice(2, 7)
    meant = gap(face.deform(misread.rest))[middle].mean()
    assert meant == pytest.approx(gap(parted)[middle].mean(), abs=0.004)
    assert gap(misread.deform(nothing)).max() < 0.002


def test_lower_lip_and_chin_move_as_far_as_a_speakers() -> None:
    """How much lower they are, in head units, in his frames with an open than with a shut jaw."""
    tracked = {14: 0.104, 152: 0.082}
    shut = {"jawOpen": 0.026, "mouthRollUpper": 0.022}
    wide = {"jawOpen": 0.315, "mouthRollUpper": 0.076, "mouthPucker": 0.047, "mouthClose": 0.037}
    face = FaceShape(common_face(), shaped())
    fallen = (face.deform(shaped(**wide)) - face.deform(shaped(**shut)))[:, 1]
    for point, moved in tracked.items():
        assert 0.9 < fallen[point] / moved < 1.1
