"""The lids as they close: skin drawn out from beyond the eye, and one soft line of lashes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import FACE_LANDMARKS
from model.rendering.face_model import Eye, smoothstep
from model.rendering.raster import Packed, pack_rgb
from model.rendering.rims import ALONG, COLUMNS, ROWS, CornerLine, Heights, Rim, draw_rim, middle
from model.types import Floats

# fmt: off
# Landmarks from the outer to the inner corner: the creases nearest to each lid's edge, and those
# beyond. A lid's skin is drawn out from the line half way between them.
FOLDS = {
    "Right": (([247, 30, 29, 27, 28, 56, 190], [113, 225, 224, 223, 222, 221, 189]),
              ([25, 110, 24, 23, 22, 26, 112], [31, 228, 229, 230, 231, 232, 233])),
    "Left": (([467, 260, 259, 257, 258, 286, 414], [342, 445, 444, 443, 442, 441, 413]),
             ([255, 339, 254, 253, 252, 256, 341], [261, 448, 449, 450, 451, 452, 453])),
}
# fmt: on
# In widths of the eye:
LASH_BAND = 0.07  # at the lid's edge: lashes, left out of the skin's texture
LASH_LINE = (0.012, 0.030)  # half the thickness of the drawn line
BELOW = 0.3  # below the corners there is skin
OVERLAP = 0.03  # the upper lid ends this far below the line on which the lids meet
SHADOW = 0.14  # how far the upper lid darkens the eye
DARK, ROUND, HANG = 0.4, 0.09, 0.8  # the shadow, a closed lid's bulge, its lashes' length
# How light a lid's skin is at its edge, of what is usual above it; at least, of that below the eye.
DARKEST, LEAST_OF_BELOW = 0.9, 0.68
LIGHT = np.array([0.299, 0.587, 0.114], np.float32)
# The share of an eye's opening that must be closed for its lids to be drawn at all, and wholly.
DRAWN_FROM, DRAWN_WHOLLY = 0.05, 0.30


@dataclass(frozen=True)
class Lids:
    """Both lids of one eye, with their skin (24, 128).

    ``opening`` is the mean opening at rest, in widths; ``ends`` and ``lashes`` (128,) say how much
    of skin and lashes is drawn; ``lash`` is red, green, blue and half the line's thickness in
    widths.
    """

    corners: NDArray[np.int64]
    upper: Rim
    lower: Rim
    upper_skin: Packed
    lower_skin: Packed
    opening: float
    ends: Heights
    lashes: Heights
    lash: NDArray[np.float64]

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, eye: Eye) -> Lids:
        """``points`` (478, 3): the landmarks at rest, in pixels of ``padded`` (H, W, 3)."""
        order = slice(None, None, 1 if eye.side == "Right" else -1)  # left to right
        corners = np.array(eye.corners)[order]
        line = CornerLine.between(*points[corners, :2].astype(np.float64))
        places = line.places(points[:, :2].astype(np.float64))
        upper, lower = (
            Rim.of(
                line,
                places,
                [
                    row[order]
                    for row in (
                        np.array([eye.corners[0], *contour, eye.corners[1]]),
                        *map(np.array, folds),
                    )
                ],
                left_out=LASH_BAND,
                bends=4,
            )
            for contour, folds in zip((eye.upper, eye.lower), FOLDS[eye.side], strict=True)
        )
        heights = places[:, 1]
        under = line.sample(padded, np.full((1, COLUMNS), BELOW * line.length))[0]
        below = np.median(middle(under), axis=0).astype(np.float32)
        skins = [
            pack_rgb(_without_lashes(rim.skin(padded, line, heights), below))
            for rim in (upper, lower)
        ]
        outer = ALONG[order]  # from the outer corner
        lashes = smoothstep((outer + 0.06) / 0.20) * smoothstep((1.02 - outer) / 0.12)
        return cls(
            corners=corners,
            upper=upper,
            lower=lower,
            upper_skin=skins[0],
            lower_skin=skins[1],
            opening=max(_opening(places[lower.edge, 1] - places[upper.edge, 1], line), 1e-3),
            ends=smoothstep((outer + 0.20) / 0.14) * smoothstep((1.08 - outer) / 0.12),
            lashes=0.85 * lashes * (1.0 - 0.55 * smoothstep((outer - 0.3) / 0.7)),
            lash=_lashes(padded, line, upper.curves(heights)[0], skin=skins[0]),
        )

    def draw(self, target: Floats, out: NDArray[np.uint8]) -> None:
        """``target`` (478+, 2): the moved landmarks, in pixels of ``out``."""
        line = CornerLine.between(*target[self.corners].astype(np.float64))
        across = target[self.lower.edge] - target[self.upper.edge]
        closed = 1.0 - _opening(across @ (-line.along[1], line.along[0]), line) / self.opening
        alpha = float(smoothstep((closed - DRAWN_FROM) / (DRAWN_WHOLLY - DRAWN_FROM)))
        if alpha <= 0.0:
            return
        heights = line.places(target[:FACE_LANDMARKS].astype(np.float64))[:, 1]
        edge, fold = self.lower.curves(heights)
        curves = np.stack([edge, fold, self.lower.depth, self.ends, np.zeros(COLUMNS)])
        look = np.array([alpha, 0.0, 0.0, ROUND * closed, 0.0])
        draw_rim(line.frame, curves, self.lower_skin, self.lash, look, out)
        edge, fold = self.upper.curves(heights)
        edge += OVERLAP * line.length * closed * np.clip(4.0 * ALONG * (1.0 - ALONG), 0.0, 1.0)
        curves = np.stack([edge, fold, self.upper.depth, self.ends, self.lashes])
        look = np.array(
            [alpha, DARK * max(0.0, 1.0 - closed), SHADOW, ROUND * closed, HANG * closed]
        )
        draw_rim(line.frame, curves, self.upper_skin, self.lash, look, out)


def _opening(gaps: NDArray[np.floating], line: CornerLine) -> float:
    """The mean of the gaps (9,) between the lids, of which the corners' are 0, in widths."""
    return float(gaps.sum()) / (len(gaps) - 2) / line.length


def _without_lashes(skin: NDArray[np.uint8], below: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Skin (24, 128, 3) that can be drawn out: even, and without lashes, towards the edge.

    ``below`` (3,) is the colour of the skin under the eye.
    """
    wide = cv2.GaussianBlur(skin, (0, 0), sigmaX=8.0, sigmaY=1.0).astype(np.float32)
    light, under = wide @ LIGHT, float(below @ LIGHT)
    # Skin is what is light in each column, or along the lid; brows and shade may hide all of it.
    usual = max(0.85 * float(np.quantile(middle(light.T), 0.7)), LEAST_OF_BELOW * under)
    least = DARKEST * np.maximum(np.quantile(light, 0.8, axis=0), usual)
    own = np.quantile(wide, 0.7, axis=0)
    hue = own / np.maximum(own @ LIGHT, 1.0)[:, None] + below / max(under, 1.0)
    lack = np.maximum(least - light, 0.0)[..., None]
    even = cv2.GaussianBlur(wide + 0.5 * lack * hue, (0, 0), sigmaX=4.0, sigmaY=1.0)
    share = smoothstep(np.linspace(0.0, 1.6, ROWS))[:, None, None].astype(np.float32)
    return np.clip(skin + share * (even - skin) + 0.5, 0, 255).astype(np.uint8)


def _lashes(
    padded: NDArray[np.uint8], line: CornerLine, edge: Heights, *, skin: Packed
) -> NDArray[np.float64]:
    """Their colour, that of the darkest along the upper lid's edge, and half their thickness."""
    offsets = np.linspace(-0.14, 0.04, 19)
    band = line.sample(padded, edge + offsets[:, None] * line.length)
    seen = middle(band.astype(np.float64).swapaxes(0, 1)).swapaxes(0, 1)
    light = seen @ LIGHT
    near = np.abs(offsets) < 0.06
    dark = seen[near][light[near] <= np.quantile(light[near], 0.15)].mean(axis=0)
    last = skin[-1].view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float64)
    plain = np.median(middle(last), axis=0)
    level = float(dark.mean()) / max(float(plain.mean()), 1.0)
    if level > 0.7:
        dark = 0.7 * plain
    profile = light.mean(axis=1)
    run = (profile < 0.5 * (profile.min() + float(plain @ LIGHT))).sum() * 0.01
    return np.array([*dark, np.clip(0.5 * run, *LASH_LINE)])
