"""Whether something covers the mouth: a mask, a hand, a microphone.

The tracker finds a mesh on a covered mouth as on any other, with full confidence. So a small
network looks at the picture where the mesh has the lips: three convolutions and two linear layers,
trained on the covers that `training.occlusion` draws.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load_file

from model.manifest import WEIGHTS, verified
from model.portrait.face_tracker import NoFaceError
from model.types import Floats, Picture

# Inner corners of the lips.
_CORNERS = (78, 308)
# The network sees (height, width) pixels; a patch has a margin (y, x), for training to shift it.
SEEN, MARGIN = (32, 48), (4, 6)
# Where the corners lie in what it sees.
CORNERS_X, CORNERS_Y = (12.0, 36.0), 15.0
# A mouth narrower than this has too few pixels to judge.
MIN_MOUTH_PIXELS = 10.0
# The logit of uncovered faces stays below: MODEL_CARD.md has the figures.
COVERED = 0.0
# Of a face that the detector doubts, as of a cartoon's with an outsized nose, the mesh may lie on
# something else: lips must then be plainer. Small and damaged pictures of real faces stay below.
DOUBTED_FACE, DOUBTFUL = 0.65, -2.0
_LEAST_CONTRAST = 0.05  # of a patch, 1 is white; less is not amplified


class OccludedError(NoFaceError):
    """Something covers the mouth, so there are no lips to animate."""


class MouthCover:
    """The network, loaded once; it keeps no state."""

    def __init__(self) -> None:
        weights = load_file(verified(WEIGHTS / "mouth_cover.safetensors"))
        self._weights = {name: value.astype(np.float32) for name, value in weights.items()}

    def check(self, picture: Picture, landmarks: Floats, *, confidence: float = 1.0) -> None:
        """``picture`` (H, W, 3) RGB, ``landmarks`` (478, 3), pixels; ``confidence`` of the face.

        Raises `OccludedError`, or `NoFaceError` where no lips are made out in a doubtful face.
        """
        right, left = landmarks[list(_CORNERS), :2]
        if np.linalg.norm(left - right) < MIN_MOUTH_PIXELS:
            return
        logit = self.logit(mouth_patch(picture, landmarks))
        if logit > COVERED:
            raise OccludedError(
                "the mouth is covered; a portrait needs visible lips, "
                "without a mask, a hand or a microphone before them"
            )
        if confidence < DOUBTED_FACE and logit > DOUBTFUL:
            raise NoFaceError(
                "no lips are made out in what may be a face; "
                "a portrait needs a human face seen from the front"
            )

    def logit(self, patch: Picture) -> float:
        """Above 0: covered. ``patch`` is `mouth_patch`'s; the mean of it and its mirror image."""
        top, left = MARGIN
        seen = patch[top : top + SEEN[0], left : left + SEEN[1]].astype(np.float32) / 255.0
        both = np.stack([seen, seen[:, ::-1]]).transpose(0, 3, 1, 2)
        return float(self._network(normalised(both)).mean())

    def _network(self, x: Floats) -> Floats:
        """(B, 3, 32, 48) → (B,)."""
        x = np.maximum(self._convolve(x, "0", stride=2), 0)
        x = _halved(np.maximum(self._convolve(x, "2"), 0))
        x = _halved(np.maximum(self._convolve(x, "5"), 0)).reshape(len(x), -1)
        hidden = np.maximum(x @ self._weights["10.weight"].T + self._weights["10.bias"], 0)
        return (hidden @ self._weights["12.weight"].T + self._weights["12.bias"])[:, 0]

    def _convolve(self, x: Floats, layer: str, stride: int = 1) -> Floats:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        squares = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        kernel = self._weights[f"{layer}.weight"]
        out = np.tensordot(squares, kernel, axes=([1, 4, 5], [1, 2, 3]))  # (B, H, W, channels)
        return (out + self._weights[f"{layer}.bias"]).transpose(0, 3, 1, 2)


def normalised(x: Floats) -> Floats:
    """(B, 3, H, W), 0..1: without each channel's mean, and of one contrast."""
    x = x - x.mean(axis=(2, 3), keepdims=True)
    contrast = np.sqrt((x**2).mean(axis=(1, 2, 3), keepdims=True))
    return x / np.maximum(contrast, _LEAST_CONTRAST)


def _halved(x: Floats) -> Floats:
    """Maximum of each square of two."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def mouth_patch(picture: Picture, landmarks: Floats) -> Picture:
    """(40, 60, 3): the picture around the lips, turned so that their corners are level."""
    right, left = landmarks[list(_CORNERS), :2].astype(np.float32)
    across = left - right
    down = np.array([-across[1], across[0]], np.float32)
    (x0, x1), y, (top, side) = CORNERS_X, CORNERS_Y, MARGIN
    to = np.array([[x0, y], [x1, y], [x0, y + x1 - x0]], np.float32) + (side, top)
    # Strong minification aliases under bilinear sampling: shrink by area first.
    shrink = min(1.0, 2.0 * (x1 - x0) / max(float(np.linalg.norm(across)), 1.0))
    corners = np.stack([right, left, right + down])
    if shrink < 1.0:
        small = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        corners *= np.array(small.shape[1::-1], np.float32) / picture.shape[1::-1]
        picture = small.astype(np.uint8)
    matrix = cv2.getAffineTransform(corners.astype(np.float32), to.astype(np.float32))
    size = (SEEN[1] + 2 * side, SEEN[0] + 2 * top)
    return np.asarray(
        cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )
