"""The eyeballs, which show between the lids.

Each is prepared once per portrait and drawn over the finished skin, clipped softly to the polygon
of its lids.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTIONS
from model.rendering.face_model import Eye, RigidMotion
from model.rendering.raster import Packed, distance_map, draw_eye, pack_rgb
from model.types import Floats

# At full eyeLook* the iris travels this share of the eye's width, across and up or down.
GAZE_ACROSS, GAZE_UPDOWN = 0.26, 0.11


@dataclass(frozen=True)
class Eyeball:
    """One eye of the portrait, inpainted under the lids.

    ``texture`` is a patch of the portrait with its upper left pixel at ``corner`` (2,); ``iris`` is
    (x, y, radius) in it. ``width`` and ``depth`` of the eye are in pixels.
    """

    eye: Eye
    texture: Packed
    corner: NDArray[np.float64]
    iris: NDArray[np.float64]
    width: float
    depth: float

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, eye: Eye) -> Eyeball:
        ring = points[eye.ring, :2]
        width = float(np.linalg.norm(points[eye.corners[0], :2] - points[eye.corners[1], :2]))
        margin = 0.35 * width + 3.0
        height, full = padded.shape[:2]
        low = np.maximum(np.floor(ring.min(axis=0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(ring.max(axis=0) + margin), (full, height)).astype(int)
        patch = np.ascontiguousarray(padded[low[1] : high[1], low[0] : high[0]])
        open_ = distance_map(ring - low, patch.shape[:2])
        # The lids hide part of the eyeball: inpaint it from the visible part, without its rim, or
        # lashes and lid colour would smear.
        hidden = (open_ < 1.0).astype(np.uint8)
        continued = cv2.inpaint(patch, hidden, 3, cv2.INPAINT_TELEA) if hidden.min() == 0 else patch
        keep = np.clip(open_ + 1.0, 0.0, 1.0)[..., None]
        blended = continued * (1.0 - keep) + patch * keep
        rim = points[eye.iris[1:], :2]
        centre = points[eye.iris[0], :2]
        radius = float(np.linalg.norm(rim - centre, axis=1).mean())
        return cls(
            eye=eye,
            texture=pack_rgb(blended.round().astype(np.uint8)),
            corner=low.astype(np.float64),
            iris=np.array([*(centre - low), max(radius, 1.0)]),
            width=width,
            depth=float(points[eye.ring, 2].mean()),
        )

    def draw(
        self,
        target: Floats,
        rigid: RigidMotion,
        *,
        now: Floats,
        rest: Floats,
        out: NDArray[np.uint8],
    ) -> None:
        ring = np.ascontiguousarray(target[self.eye.ring])
        matrix = rigid.from_frame(self.depth)
        matrix[:, 2] -= self.corner
        look = _gaze(now, self.eye.side) - _gaze(rest, self.eye.side)
        shift = look * self.width * np.array([GAZE_ACROSS, GAZE_UPDOWN])
        draw_eye(ring, self.texture, matrix, self.iris, shift, out)


def _gaze(actions: Floats, side: str) -> NDArray[np.float64]:
    """(2,): an eye's gaze in picture axes (right and down positive), about -1..1."""
    value = {
        way: float(actions[ACTIONS.index(f"eyeLook{way}{side}")])
        for way in ("In", "Out", "Up", "Down")
    }
    # The subject's left eye is on the picture's right, so outwards is to the right.
    across = value["Out"] - value["In"]
    return np.array([across if side == "Left" else -across, value["Down"] - value["Up"]])
