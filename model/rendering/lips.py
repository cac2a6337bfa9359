"""Lips that close although the portrait parts them: lip up to the seam, and one soft dark line.

The rim of a parted lip is seen with teeth behind it. The mesh alone would close on a dotted line of
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import FACE_LANDMARKS
from model.rendering.face_model import LOWER_ROWS, MOUTH_CORNERS, UPPER_ROWS, smoothstep
from model.rendering.raster import Packed, pack_rgb
from model.rendering.rims import ALONG, COLUMNS, CornerLine, Heights, Rim, draw_rim, middle
from model.types import Floats

# In widths of the mouth:
PARTED = 0.04  # a portrait whose lips are further apart at rest parts them
TEETH_BAND = 0.05  # at a lip's edge: left out of its texture
SEAM, SEAM_GAP = 0.010, 0.025  # half the line's thickness; it fades as the lips part this far
SEAM_COLOUR, SEAM_SHARE = 0.45, 0.75  # of the lips' own; how much of the line is drawn
# The share of the opening at rest that must be closed for lips to be drawn at all, and wholly.
DRAWN_FROM, DRAWN_WHOLLY = 0.15, 0.60


@dataclass(frozen=True)
class ClosingLips:
    """Both lips with their skin (24, 128); ``opening`` is the mean at rest, in widths.

    ``seam`` is red, green, blue and half the thickness of the line in widths.
    """

    upper: Rim
    lower: Rim
    upper_skin: Packed
    lower_skin: Packed
    opening: float
    seam: NDArray[np.float64]

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats) -> ClosingLips:
        """``points`` (478, 3): the landmarks at rest, in pixels of ``padded`` (H, W, 3)."""
        line = CornerLine.between(*points[list(MOUTH_CORNERS), :2].astype(np.float64))
        places = line.places(points[:, :2].astype(np.float64))
        upper, lower = (
            Rim.of(
                line,
                places,
                [np.array([MOUTH_CORNERS[0], *rows[0], MOUTH_CORNERS[1]]), rows[1], rows[2]],
                left_out=TEETH_BAND,
                bends=6,
            )
            for rows in (UPPER_ROWS, LOWER_ROWS)
        )
        heights = places[:, 1]
        skins = [
            cv2.GaussianBlur(rim.skin(padded, line, heights), (0, 0), sigmaX=1.0, sigmaY=0.8)
            for rim in (upper, lower)
        ]
        lip = np.median(middle(np.concatenate(skins).swapaxes(0, 1)).reshape(-1, 3), axis=0)
        return cls(
            upper=upper,
            lower=lower,
            upper_skin=pack_rgb(skins[0]),
            lower_skin=pack_rgb(skins[1]),
            opening=float(middle(_gaps(upper, lower, heights)).mean()) / line.length,
            seam=np.array([*(SEAM_COLOUR * lip), SEAM]),
        )

    def draw(self, target: Floats, out: NDArray[np.uint8]) -> None:
        """``target`` (478+, 2): the moved landmarks, in pixels of ``out``."""
        if self.opening < PARTED:
            return
        line = CornerLine.between(*target[list(MOUTH_CORNERS)].astype(np.float64))
        heights = line.places(target[:FACE_LANDMARKS].astype(np.float64))[:, 1]
        gaps = _gaps(self.upper, self.lower, heights) / line.length
        closed = 1.0 - float(middle(gaps).mean()) / self.opening
        alpha = float(smoothstep((closed - DRAWN_FROM) / (DRAWN_WHOLLY - DRAWN_FROM)))
        if alpha <= 0.0:
            return
        ends = smoothstep((ALONG + 0.02) / 0.06) * smoothstep((1.02 - ALONG) / 0.06)
        seam = SEAM_SHARE * ends * np.exp(-((gaps / SEAM_GAP) ** 2))
        look = np.array([alpha, 0.0, 0.0, 0.0, 0.0])
        for rim, skin, line_share in (
            (self.lower, self.lower_skin, np.zeros(COLUMNS)),
            (self.upper, self.upper_skin, seam),
        ):
            edge, fold = rim.curves(heights)
            curves = np.stack([edge, fold, rim.depth, ends, line_share])
            draw_rim(line.frame, curves, skin, self.seam, look, out)


def _gaps(upper: Rim, lower: Rim, heights: Heights) -> Heights:
    """(128,) pixels between the lips' smooth edges."""
    return np.maximum(lower.curves(heights)[0] - upper.curves(heights)[0], 0.0)
