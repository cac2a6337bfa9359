"""The layout of a motion latent: 52 facial actions, head rotation (3), head translation (3).

Layout of a latent (58,), in physical units:
    0..51   facial actions, `ACTIONS`
    52..54  head rotation as a rotation vector, radians; axes x right, y up, z towards the viewer
    55..57  head translation, in distances between the outer eye corners

Both pose parts are relative to the reference's own head pose, so a turned portrait keeps its turn.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model.types import Floats

ACTIONS: tuple[str, ...] = (
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthLeft",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthPucker",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "noseSneerLeft",
    "noseSneerRight",
    "tongueOut",
)
ACTION_COUNT = len(ACTIONS)
ROTATION = slice(ACTION_COUNT, ACTION_COUNT + 3)
TRANSLATION = slice(ACTION_COUNT + 3, ACTION_COUNT + 6)
MOTION_DIM = ACTION_COUNT + 6

# MediaPipe's mesh: the face's points, then each iris's (centre, four of the rim), right eye first.
FACE_LANDMARKS, IRIS_LANDMARKS = 468, 5
LANDMARKS = FACE_LANDMARKS + 2 * IRIS_LANDMARKS

_ABSOLUTE_STEMS = (
    "jaw",
    "mouthClose",
    "mouthFunnel",
    "mouthPucker",
    "mouthRoll",
    "mouthPress",
    "mouthShrug",
    "mouthLowerDown",
    "mouthUpperUp",
    "cheekPuff",
    "tongueOut",
)

# Absolute actions shape the lips in speech: their latent is the coefficient itself, so that lips
# that are parted in the portrait still close on a /p/. Every other action is relative: its latent
# is added to the portrait's rest, so that the portrait keeps its look.
ABSOLUTE: NDArray[np.bool_] = np.array([name.startswith(_ABSOLUTE_STEMS) for name in ACTIONS])
BLINK: NDArray[np.bool_] = np.array([name.startswith("eyeBlink") for name in ACTIONS])
_OFFSET = ~ABSOLUTE & ~BLINK
# Lids and gaze.
EYES: NDArray[np.bool_] = np.array([name.startswith("eye") for name in ACTIONS])
# What speech moves; eyes, brows and nose move independently.
MOUTH: NDArray[np.bool_] = np.array(
    [name.startswith(("jaw", "mouth", "cheekPuff", "tongue")) for name in ACTIONS]
)
ABSOLUTE.setflags(write=False)
MOUTH.setflags(write=False)
BLINK.setflags(write=False)
EYES.setflags(write=False)

# A rest of 1 (eyes closed in the portrait) leaves nothing to close; the floor keeps the inverse
# finite there.
_LEAST_LID_TRAVEL = 0.05

GEOMETRY_DIM = 12
REFERENCE_DIM = ACTION_COUNT + GEOMETRY_DIM

# Pairs of mesh points (MediaPipe's 478-point topology) whose distance is divided by the distance
# of the outer eye corners (33, 263), with the ratio of a common adult face and its spread.
_EYE_CORNERS = (33, 263)
_GEOMETRY: tuple[tuple[int, int, float, float], ...] = (
    (61, 291, 0.57, 0.10),  # mouth width
    (0, 17, 0.26, 0.10),  # lip height, outer
    (0, 13, 0.10, 0.04),  # upper lip thickness
    (14, 17, 0.13, 0.05),  # lower lip thickness
    (4, 0, 0.42, 0.10),  # nose tip to upper lip
    (17, 152, 0.41, 0.12),  # lower lip to chin
    (10, 152, 2.00, 0.30),  # face height
    (234, 454, 1.58, 0.20),  # face width
    (133, 362, 0.39, 0.08),  # between the inner eye corners
    (159, 145, 0.11, 0.05),  # right eye's opening
    (386, 374, 0.11, 0.05),  # left eye's opening
    (105, 159, 0.25, 0.08),  # brow to lid
)
_GEOMETRY_LIMIT = 2.0


def _checked(name: str, array: Floats, width: int) -> Floats:
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name} has shape {array.shape}, expected (T, {width})")
    return array


def rotation_matrices(vectors: Floats) -> NDArray[np.float64]:
    """(T, 3) rotation vectors, radians -> (T, 3, 3); Rodrigues' formula."""
    v = np.asarray(vectors, np.float64)
    angle = np.linalg.norm(v, axis=-1)[:, None, None]
    x, y, z = (v / np.maximum(angle[:, 0], 1e-9)).T
    zero = np.zeros_like(x)
    k = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1.0 - np.cos(angle)) * (k @ k))


def rotation_vectors(matrices: NDArray[np.float64]) -> Floats:
    """(T, 3, 3) rotations -> (T, 3) rotation vectors, radians, angle in [0, π]."""
    return np.stack([cv2.Rodrigues(m)[0][:, 0] for m in matrices]).astype(np.float32)


def head_rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Yaw, pitch and roll (T, 3) in radians -> rotation matrices (T, 3, 3).

    Roll about z (towards the viewer) first, then pitch about x (right), then yaw about y (up).
    """
    x, y, z = np.eye(3)
    yaw, pitch, roll = (a[:, None] for a in angles.T)
    turns = [rotation_matrices((a * axis).astype(np.float32)) for a, axis in
             ((yaw, y), (pitch, x), (roll, z))]  # fmt: skip
    return np.asarray(turns[0] @ turns[1] @ turns[2])


def head_angles(rotations: NDArray[np.float64]) -> Floats:
    """Rotation matrices (T, 3, 3) -> yaw, pitch and roll (T, 3): the inverse of `head_rotations`,
    for pitches below a right angle."""
    yaw = np.arctan2(rotations[:, 0, 2], rotations[:, 2, 2])
    pitch = np.arcsin(np.clip(-rotations[:, 1, 2], -1.0, 1.0))
    roll = np.arctan2(rotations[:, 1, 0], rotations[:, 1, 1])
    return np.stack([yaw, pitch, roll], axis=1).astype(np.float32)


def to_motion(coefficients: Floats, pose: Floats, *, rest: Floats, rest_pose: Floats) -> Floats:
    """Tracked values as motion latents (T, 58).

    ``coefficients`` (T, 52) in [0, 1]; ``pose`` (T, 6) rotation vector and translation;
    ``rest`` (52,) and ``rest_pose`` (6,) of the reference they are taken relative to.
    Raises ``ValueError`` for other shapes.
    """
    _checked("coefficients", coefficients, ACTION_COUNT)
    _checked("pose", pose, 6)
    _checked("rest", rest[None], ACTION_COUNT)
    _checked("rest_pose", rest_pose[None], 6)
    motion = np.empty((len(coefficients), MOTION_DIM), np.float32)
    motion[:, :ACTION_COUNT] = coefficients - np.where(ABSOLUTE, 0.0, rest)
    motion[:, :ACTION_COUNT][:, BLINK] /= np.maximum(1.0 - rest[BLINK], _LEAST_LID_TRAVEL)
    rest_rotation = rotation_matrices(rest_pose[None, :3])[0]
    motion[:, ROTATION] = rotation_vectors(rotation_matrices(pose[:, :3]) @ rest_rotation.T)
    motion[:, TRANSLATION] = pose[:, 3:] - rest_pose[3:]
    return motion


def from_motion(motion: Floats, rest: Floats) -> tuple[Floats, Floats]:
    """Motion latents as tracked values of a face with ``rest`` (52,): the inverse of `to_motion`.

    Returns coefficients (T, 52), clipped to [0, 1], and head pose (T, 6) relative to the
    reference. Raises ``ValueError`` for other shapes.
    """
    _checked("motion", motion, MOTION_DIM)
    _checked("rest", rest[None], ACTION_COUNT)
    actions = motion[:, :ACTION_COUNT]
    travel = np.where(BLINK, np.maximum(1.0 - rest, _LEAST_LID_TRAVEL), 1.0)
    start = np.where(ABSOLUTE, 0.0, rest)
    coefficients = np.clip(start + travel * actions, 0.0, 1.0).astype(np.float32)
    return coefficients, motion[:, ACTION_COUNT:].astype(np.float32)


def shown_motion(latents: Floats) -> Floats:
    """(T, 58) of ``latents`` (T, 58 or more): the motion to draw, which follows the network's own
    where a pipeline adds to it (`model.motion.nonverbal`)."""
    own = latents.shape[1] == MOTION_DIM
    return latents if own else latents[:, MOTION_DIM : 2 * MOTION_DIM]


def reference_features(rest: Floats, landmarks: Floats | None) -> Floats:
    """The network's features of a portrait: (64,) = 52 rest coefficients + 12 face ratios.

    ``rest`` (52,) in [0, 1]; ``landmarks`` (478, 3) in one isotropic unit (pixels), or ``None``
    where only the rest is known: the ratios are then those of a common face. A ratio is a
    distance in units of the outer eye corners', less the common face's, over the spread among
    faces, clipped to ±2 so that no unusual face leaves the range seen in training.
    """
    _checked("rest", rest[None], ACTION_COUNT)
    geometry = np.zeros(GEOMETRY_DIM, np.float32)
    if landmarks is not None:
        if landmarks.ndim != 2 or landmarks.shape[1] != 3 or len(landmarks) < FACE_LANDMARKS:
            raise ValueError(f"landmarks have shape {landmarks.shape}, expected ({LANDMARKS}, 3)")
        unit = float(np.linalg.norm(np.subtract(*landmarks[list(_EYE_CORNERS)])))
        if not unit > 0:
            raise ValueError(f"the outer eye corners are {unit} apart, expected more than 0")
        first, second, common, spread = (np.array(c) for c in zip(*_GEOMETRY, strict=True))
        span = np.linalg.norm(landmarks[first.astype(int)] - landmarks[second.astype(int)], axis=1)
        scaled = (span / unit - common) / spread
        geometry = np.clip(scaled, -_GEOMETRY_LIMIT, _GEOMETRY_LIMIT).astype(np.float32)
    return np.concatenate([rest.astype(np.float32), geometry])
