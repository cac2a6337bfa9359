"""The shape of a portrait's face and how actions and head pose move it.

Units: the *head frame* has its axes as a picture has (x right, y down, z away from the viewer) and
is measured in distances of the outer eye corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model.manifest import WEIGHTS, verified
from model.portrait.blendshapes import (
    ACTION_COUNT,
    ACTIONS,
    FACE_LANDMARKS,
    IRIS_LANDMARKS,
    LANDMARKS,
)
from model.types import Floats

BASIS_FILE = WEIGHTS / "face_basis.safetensors"

# Points that expressions hardly move: head rotation is fitted to them.
STABLE = [33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 10, 151, 9, 8, 70, 300, 234, 454, 127, 356]

# The lips as nine columns from the subject's right to left; rows from the inner edge outwards.
# fmt: off
UPPER_ROWS = np.array([
    [191, 80, 81, 82, 13, 312, 311, 310, 415],
    [183, 42, 41, 38, 12, 268, 271, 272, 407],
    [184, 74, 73, 72, 11, 302, 303, 304, 408],
    [185, 40, 39, 37, 0, 267, 269, 270, 409],
])
LOWER_ROWS = np.array([
    [95, 88, 178, 87, 14, 317, 402, 318, 324],
    [96, 89, 179, 86, 15, 316, 403, 319, 325],
    [77, 90, 180, 85, 16, 315, 404, 320, 307],
    [146, 91, 181, 84, 17, 314, 405, 321, 375],
])
MOUTH_CORNERS = (78, 308)
CHIN, FOREHEAD = 152, 10
# fmt: on
UPPER_LIP = frozenset(UPPER_ROWS.ravel().tolist())
LOWER_LIP = frozenset(LOWER_ROWS.ravel().tolist())
MOUTH_RING = np.array(
    [MOUTH_CORNERS[0], *UPPER_ROWS[0], MOUTH_CORNERS[1], *LOWER_ROWS[0][::-1]], dtype=np.int64
)


@dataclass(frozen=True)
class Eye:
    """One eye's points: lid contours from outer to inner corner, iris centre and rim."""

    side: str
    upper: NDArray[np.int64]
    lower: NDArray[np.int64]
    corners: tuple[int, int]
    iris: NDArray[np.int64]

    @property
    def ring(self) -> NDArray[np.int64]:
        return np.array([self.corners[0], *self.upper, self.corners[1], *self.lower[::-1]])


EYES = (
    Eye(
        "Right",
        np.array([246, 161, 160, 159, 158, 157, 173]),
        np.array([7, 163, 144, 145, 153, 154, 155]),
        (33, 133),
        np.arange(FACE_LANDMARKS, FACE_LANDMARKS + IRIS_LANDMARKS),
    ),
    Eye(
        "Left",
        np.array([466, 388, 387, 386, 385, 384, 398]),
        np.array([249, 390, 373, 374, 380, 381, 382]),
        (263, 362),
        np.arange(FACE_LANDMARKS + IRIS_LANDMARKS, LANDMARKS),
    ),
)

# How a lip gap beyond the basis is shared, so that both lips move as a speaker's (bench/jaw.py).
UPPER_SHARE, LOWER_SHARE = 0.5, 0.5
ROW_WEIGHTS = (1.0, 0.85, 0.6, 0.35)
# The linear basis opens the lips a little before a real speaker's part (GRID): taken off, softly.
LIP_DEADZONE = 0.008
LIP_SOFTNESS = 0.006
# Then they part faster than the basis has it: beyond the first hundredth of an eye-corner distance
# a tracked mouth stands this much wider open at any opening, a column (GRID, from 0.02 to 0.2).
LIP_PARTING = 0.018 * np.array([0.5, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 0.7, 0.5])
LIP_PARTED = 0.01
SHUT_GAP = 0.01  # below about this opening lips count as closed
# The smallest share of each lip row's height that may be left.
THINNEST_LIP = 0.15
# How far into the lips, as a share of their first row, the edge of parted lips is moved.
TEETH_RIM = 0.8
# A whole blink reads about this much (the median peak of a tracked speaker's), not 1; and a
# reading a little above rest is noise more than lid: hence a smooth step from rest to there.
LIDS_MEET_AT = 0.75
# Lids meet this far up from the lower lid's place.
LID_MEETING = 0.12
# The skin above follows a lid by this share of what the basis has: the lid unrolls from below it.
SKIN_SHARE = 0.4


@dataclass(frozen=True)
class FaceBasis:
    """``canonical`` (468, 3), ``triangles`` (898, 3), ``basis`` (52, 478, 3).

    `training.face_basis` derives them.
    """

    canonical: Floats
    triangles: NDArray[np.int32]
    basis: Floats


@cache
def face_basis() -> FaceBasis:
    """The shipped basis, read once per process."""
    tensors = load_file(verified(BASIS_FILE))
    basis = np.zeros((ACTION_COUNT, LANDMARKS, 3), np.float32)
    basis[:, :FACE_LANDMARKS] = tensors["basis"]
    return FaceBasis(tensors["canonical"], tensors["triangles"], basis)


@dataclass(frozen=True)
class RigidMotion:
    """The head's rigid motion: padded resting pixels (x, y, z) → pixels of the frame."""

    turn: NDArray[np.float64]
    origin: NDArray[np.float64]
    shift: NDArray[np.float64]
    pad: float

    def from_frame(self, depth: float) -> NDArray[np.float64]:
        """(2, 3): frame pixels → resting padded pixels, for a plane at ``depth``."""
        forward = np.zeros((2, 3))
        forward[:, :2] = self.turn[:2, :2]
        at = self.turn[:2, 2] * (depth - self.origin[2])
        forward[:, 2] = (
            at - self.turn[:2, :2] @ self.origin[:2] + self.origin[:2] + self.shift[:2] - self.pad
        )
        inverse: NDArray[np.float64] = cv2.invertAffineTransform(forward)
        return inverse


def fit_similarity(
    source: NDArray[np.floating], target: NDArray[np.floating]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Scale, rotation (3, 3), shift with ``target ≈ scale * source @ rotation.T + shift``.

    Least squares over paired (N, 3) points (Umeyama, PAMI 1991).
    """
    a, b = source.astype(np.float64), target.astype(np.float64)
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    a, b = a - a_mean, b - b_mean
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((s * sign).sum() / (a**2).sum())
    return scale, rotation, b_mean - scale * rotation @ a_mean


def hide_teeth(landmarks: Floats) -> Floats:
    """Move the inner edge of parted lips a little into the lips: (478, 3) pixels, a copy.

    The tracker's inner contour runs along the teeth, not along the lips: closed on it, a smile
    would keep a rim of teeth. The wider the lips are parted, the more likely that rim is teeth.
    """
    moved = landmarks.copy()
    eyes = float(np.linalg.norm(landmarks[33] - landmarks[263]))
    gap = np.linalg.norm(landmarks[LOWER_ROWS[0]] - landmarks[UPPER_ROWS[0]], axis=1) / eyes
    share = TEETH_RIM * np.clip(gap / 0.08, 0.0, 1.0)[:, None]
    for rows in (UPPER_ROWS, LOWER_ROWS):
        moved[rows[0]] += share * (landmarks[rows[1]] - landmarks[rows[0]])
        # The next row keeps its distance, or a thin lip would be folded over.
        moved[rows[1]] += 0.5 * share * (landmarks[rows[2]] - landmarks[rows[1]])
    return moved


class FaceShape:
    """One portrait's face: its pose, its resting actions, and how actions move its 478 points.

    ``landmarks`` (478, 3) in pixels, ``coefficients`` (52,) as tracked. ``rest`` (52,) is the
    tracked reading, refined so that it gives the lip opening seen in the picture.
    """

    def __init__(self, landmarks: Floats, coefficients: Floats) -> None:
        shared = face_basis()
        scale, rotation, shift = fit_similarity(shared.canonical[STABLE], landmarks[STABLE])
        self.eye_distance = float(scale)
        self.rotation = rotation
        self.origin = shift
        self.points = ((landmarks - shift) @ rotation / scale).astype(np.float32)
        self._linear = _without_lids(shared.basis)
        seen = self.points[LOWER_ROWS[0], 1] - self.points[UPPER_ROWS[0], 1]
        self._gap_seen = np.maximum(seen, 0.0)
        self.rest = _refine_rest(coefficients.astype(np.float32), self._gap_seen)
        self._gap_rest = lip_gaps(self.rest)
        self._upper, self._lower = _lip_weights(self.points)
        self._lids = [_lid_weights(self.points, eye, shared.basis) for eye in EYES]

    def deform(self, coefficients: Floats) -> Floats:
        """(52,) absolute actions → (478, 3) head-frame points; ``rest`` gives the resting ones."""
        change = coefficients - self.rest
        moved = self.points + np.tensordot(change, self._linear, axes=1)
        self._close_lips(moved, coefficients, change)
        for eye, lids in zip(EYES, self._lids, strict=True):
            self._close_lids(moved, coefficients, eye=eye, weights=lids)
        return moved.astype(np.float32)

    def _close_lips(self, moved: Floats, coefficients: Floats, change: Floats) -> None:
        """Set the lip gap to the coefficients' own, in absolute terms: closed lips meet.

        The gap seen in the portrait beyond that of its rest (``gap_seen - gap_rest``) scales with
        the opening: all of it at rest, none when the lips close.
        """
        gap = lip_gaps(coefficients)
        rest_mean = max(float(self._gap_rest.mean()), 1e-3)
        kept = np.clip(float(gap.mean()) / rest_mean, 0.0, 1.0)
        if not np.any(change):
            kept = 1.0
        wanted = np.maximum(gap + kept * (self._gap_seen - self._gap_rest), 0.0)
        extra = wanted - (moved[LOWER_ROWS[0], 1] - moved[UPPER_ROWS[0], 1])
        moved[:, 1] += self._lower @ (LOWER_SHARE * extra) - self._upper @ (UPPER_SHARE * extra)
        # Closed lips share their depth, or a nod of the head would part them.
        shut = np.exp(-wanted / SHUT_GAP)
        deep = shut * (moved[LOWER_ROWS[0], 2] - moved[UPPER_ROWS[0], 2])
        moved[UPPER_ROWS[0], 2] += (0.5 * deep).astype(np.float32)
        moved[LOWER_ROWS[0], 2] -= (0.5 * deep).astype(np.float32)
        # A lip that rolls in gets thinner, but its outline never crosses its inner edge.
        for rows, sign in ((UPPER_ROWS, -1.0), (LOWER_ROWS, 1.0)):
            for inner, outer in pairwise(rows):
                seen = sign * (self.points[outer, 1] - self.points[inner, 1])
                least = np.minimum(THINNEST_LIP * seen, seen)
                thick = np.maximum(sign * (moved[outer, 1] - moved[inner, 1]), least)
                moved[outer, 1] = moved[inner, 1] + sign * thick

    def _close_lids(
        self, moved: Floats, coefficients: Floats, *, eye: Eye, weights: NDArray[np.float64]
    ) -> None:
        index = ACTIONS.index(f"eyeBlink{eye.side}")
        rest, now = float(self.rest[index]), float(coefficients[index])
        # Above rest the lids close; below rest they open by as much as rest had closed them.
        travel = (now - rest) / max(1.0 - rest, 0.05)
        blink = float(smoothstep(travel / LIDS_MEET_AT)) if now >= rest else (now - rest) * 0.6
        upper, lower = moved[eye.upper], moved[eye.lower]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0.0)
        drop = np.clip(blink, -0.25, 1.0) * gap
        moved[:, 1] += weights @ ((1.0 - LID_MEETING) * drop)
        lifted = lower[:, 1] - LID_MEETING * np.maximum(drop, 0.0)
        # Lids may touch but not cross. Where they touch they share depth and sideways position, or
        # a turn of the head would open them again.
        moved[eye.lower, 1] = np.maximum(lifted, moved[eye.upper, 1])
        apart = moved[eye.lower] - moved[eye.upper]
        met = max(0.0, blink) * np.array([1.0, 0.0, 1.0], np.float32)
        moved[eye.upper] += met * apart


def eased(x: float) -> float:
    """`smoothstep` of one number, in a tenth of the time."""
    x = min(1.0, max(0.0, x))
    return x * x * (3.0 - 2.0 * x)


def smoothstep(x: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below 0, 1 above 1, ``3x² - 2x³`` in between."""
    x = np.minimum(1.0, np.maximum(0.0, x))  # np.clip takes three times as long for a scalar
    smooth: NDArray[np.float64] = x * x * (3.0 - 2.0 * x)
    return smooth


def _without_lids(basis: Floats) -> Floats:
    """The basis without its blinks: lids close by meeting, not by a fixed distance."""
    linear = basis.copy()
    linear[[ACTIONS.index("eyeBlinkLeft"), ACTIONS.index("eyeBlinkRight")]] = 0.0
    return linear


def lip_gaps(coefficients: Floats) -> NDArray[np.float64]:
    """(..., 52) actions → (..., 9) openings of the lips' columns, ≥ 0, in head units.

    The middle one is a tracked speaker's to 0.002 (GRID s1, any opening up to 0.2).
    """
    linear = coefficients @ _lip_rows() - LIP_DEADZONE
    opened = 0.5 * (linear + np.sqrt(linear**2 + LIP_SOFTNESS**2)) - _SOFT_ZERO
    return np.maximum(opened + LIP_PARTING * (1.0 - np.exp(-opened / LIP_PARTED)), 0.0)


@cache
def _lip_rows() -> Floats:
    """(52, 9): how far each action opens the lips' columns in the linear basis."""
    basis = _without_lids(face_basis().basis)
    return np.asarray(basis[:, LOWER_ROWS[0], 1] - basis[:, UPPER_ROWS[0], 1])


_SOFT_ZERO = 0.5 * (-LIP_DEADZONE + np.sqrt(LIP_DEADZONE**2 + LIP_SOFTNESS**2))


def _refine_rest(coefficients: Floats, seen: NDArray[np.float64]) -> Floats:
    """The smallest change of the parting actions that gives the lip opening ``seen``."""
    parting = [
        ACTIONS.index(name)
        for name in (
            "jawOpen",
            "mouthLowerDownLeft",
            "mouthLowerDownRight",
            "mouthUpperUpLeft",
            "mouthUpperUpRight",
        )
    ]
    rest = coefficients.copy()
    middle = slice(2, 7)
    weights = _lip_rows()[parting][:, middle].mean(axis=1)
    weights = np.maximum(weights, 0.0)
    for _ in range(8):
        missing = float(seen[middle].mean() - lip_gaps(rest)[middle].mean())
        if abs(missing) < 1e-4:
            break
        step = missing * weights / float(weights @ weights)
        rest[parting] = np.clip(rest[parting] + step, 0.0, 1.0)
    return rest


def _lip_weights(points: Floats) -> tuple[Floats, Floats]:
    """(478, 9) each: how much every point follows each lip column, upper and lower."""
    lips = np.array(sorted(UPPER_LIP | LOWER_LIP | set(MOUTH_CORNERS)))
    others = np.setdiff1d(np.arange(FACE_LANDMARKS), lips)
    both = []
    for rows, sign in ((UPPER_ROWS, -1.0), (LOWER_ROWS, 1.0)):
        weights = np.zeros((LANDMARKS, 9), np.float32)
        for row, weight in zip(rows, ROW_WEIGHTS, strict=True):
            weights[row, np.arange(9)] = weight
        away = points[others, None] - points[rows[-1]]
        squared = (away**2).sum(axis=2)
        nearest = away[np.arange(len(others)), squared.argmin(axis=1), 1]
        near = np.exp(-squared / (2 * 0.08**2))
        beside = sign * nearest.astype(np.float64) < -0.02  # the other lip
        follows = ~beside & (near.max(axis=1) > 1e-3)
        near = near[follows]
        share = near.max(axis=1, keepdims=True)
        weights[others[follows]] = ROW_WEIGHTS[-1] * near / near.sum(axis=1, keepdims=True) * share
        both.append(weights)
    return both[0], both[1]


def _lid_weights(points: Floats, eye: Eye, basis: Floats) -> NDArray[np.float64]:
    """(478, 7): how much every point follows the fall of each upper-lid column.

    The lid's contour follows fully, the skin above it in proportion to the basis's blink, so that
    the lid unrolls evenly from below the brow.
    """
    weights = np.zeros((LANDMARKS, 7))
    blink = basis[ACTIONS.index(f"eyeBlink{eye.side}"), :, 1].astype(np.float64)
    reach = np.clip(blink / max(float(blink[eye.upper].max()), 1e-6), 0.0, 1.0)
    contour = points[eye.upper]
    own = {int(v) for v in eye.ring}
    for vertex in np.flatnonzero(reach > 0.01):
        if int(vertex) in own or points[vertex, 1] > points[eye.lower, 1].max():
            continue
        away = ((points[vertex, :2] - contour[:, :2]) ** 2).sum(axis=1)
        near = np.exp(-(away - away.min()) / (2 * 0.05**2))
        weights[vertex] = SKIN_SHARE * reach[vertex] * near / near.sum()
    weights[eye.upper, np.arange(7)] = 1.0
    return weights
