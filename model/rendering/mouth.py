"""The mouth's interior, which shows between the lips: teeth, tongue and cavity.

It is prepared once per portrait and drawn over the finished skin, clipped softly to the polygon of
the inner lips.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTIONS
from model.rendering.face_model import (
    CHIN,
    EYES,
    LOWER_ROWS,
    MOUTH_CORNERS,
    MOUTH_RING,
    UPPER_ROWS,
    UPPER_SHARE,
    FaceShape,
    RigidMotion,
    face_basis,
)
from model.rendering.raster import Packed, distance_map, draw_mouth, pack_rgba
from model.types import Floats

# The portrait's own teeth show where its lips are further apart than this (eye distances).
OWN_MOUTH_GAP = 0.022
CANONICAL_MOUTH_WIDTH = 0.552  # between the mouth's corners, in eye distances


@dataclass(frozen=True)
class Mouth:
    """Teeth, tongue and cavity, tinted to the portrait, and the mouth that the portrait shows."""

    shape: FaceShape
    upper: Packed
    lower: Packed
    window: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: float
    cavity: NDArray[np.float64]
    tint: NDArray[np.float64]
    own: Packed
    own_corner: NDArray[np.float64]
    own_depth: float
    own_gap: float
    jaw_rest: float

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, shape: FaceShape) -> Mouth:
        textures = face_basis().textures
        head = shape.points
        upper, lower = head[UPPER_ROWS[0]], head[LOWER_ROWS[0]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0.0)
        middle = slice(2, 7)
        centre = upper[middle].mean(axis=0)
        centre[1] += UPPER_SHARE * gap[middle].mean()
        width = float(np.linalg.norm(head[MOUTH_CORNERS[0]] - head[MOUTH_CORNERS[1]]))
        shows = float(gap[middle].mean()) > OWN_MOUTH_GAP
        own, corner = _own_mouth(padded, points) if shows else (np.zeros((1, 1), np.uint32), None)
        jaw = ACTIONS.index("jawOpen")
        dropped = face_basis().basis[jaw, CHIN, 1] * shape.rest[jaw]
        return cls(
            shape=shape,
            upper=pack_rgba(textures["teeth_upper"]),
            lower=pack_rgba(textures["teeth_lower"]),
            window=textures["mouth_window"].astype(np.float64),
            centre=centre.astype(np.float64),
            scale=float(np.clip(width / CANONICAL_MOUTH_WIDTH, 0.8, 1.15)),
            cavity=_cavity_colour(padded, points),
            tint=_tooth_colour(padded, points) / 255.0,
            own=own,
            own_corner=np.zeros(2) if corner is None else corner,
            own_depth=float(points[UPPER_ROWS[0], 2].mean()),
            own_gap=float(gap[middle].mean()),
            jaw_rest=float(head[CHIN, 1] - dropped),
        )

    def draw(
        self,
        face: Floats,
        target: Floats,
        rigid: RigidMotion,
        *,
        out: NDArray[np.uint8],
    ) -> None:
        ring = np.ascontiguousarray(target[MOUTH_RING])
        gap = float((face[LOWER_ROWS[0], 1] - face[UPPER_ROWS[0], 1])[2:7].mean())
        if np.ptp(ring[:, 1]) < 0.5:
            return
        shape = self.shape
        x0, x1, y0, y1 = self.window * self.scale
        rows, columns = self.upper.shape
        # Texels → head frame → frame pixels, for the plane just behind the lips, then inverted.
        axes = shape.eye_distance * (rigid.turn @ shape.rotation)[:2]
        texel = np.array([(x1 - x0) / columns, (y1 - y0) / rows])
        start = self.centre + (x0, y0, 0.03)
        forward = np.zeros((2, 3))
        forward[:, :2] = axes[:, :2] * texel
        forward[:, 2] = axes @ start + rigid.origin[:2] + rigid.shift[:2] - rigid.pad
        to_own = rigid.from_frame(self.own_depth)
        to_own[:, 2] -= self.own_corner
        # The lower teeth move with the jaw, which turns about its joint: front teeth move furthest.
        drop = max(0.0, float(face[CHIN, 1]) - self.jaw_rest) * 1.1 / texel[1]
        opened = max(0.0, gap - self.own_gap) * shape.eye_distance
        draw_mouth(
            ring,
            cv2.invertAffineTransform(forward),
            self.upper,
            self.lower,
            drop,
            self.cavity,
            self.tint,
            max(1.5, 0.07 * shape.eye_distance),
            self.own,
            to_own,
            1.5 - min(3.0, 0.75 * opened),
            out,
        )


def _own_mouth(padded: NDArray[np.uint8], points: Floats) -> tuple[Packed, NDArray[np.float64]]:
    """The portrait's own open mouth and its upper left corner.

    Its alpha is 128 + 16 x the signed distance to the lips, in pixels.
    """
    ring = points[MOUTH_RING, :2]
    low = np.maximum(np.floor(ring.min(axis=0)) - 4, 0).astype(int)
    high = np.ceil(ring.max(axis=0)).astype(int) + 4
    patch = padded[low[1] : high[1], low[0] : high[0]]
    distance = distance_map(ring - low, patch.shape[:2])
    alpha = np.clip(128 + 16 * distance, 0, 255)[..., None]
    return pack_rgba(np.concatenate([patch, alpha.astype(np.uint8)], axis=2)), low.astype(float)


def _tooth_colour(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    """(3,) 0..255: the whites of the eyes show how light teeth are in the portrait's light."""
    whites = []
    for eye in EYES:
        mask = np.zeros(padded.shape[:2], np.uint8)
        cv2.fillPoly(mask, [points[eye.ring, :2].round().astype(np.int32)], 1)
        whites.append(padded[mask > 0].reshape(-1, 3))
    skin = _mean_around(padded, points[[50, 280, 205, 425], :2])
    pixels = np.concatenate([*whites, skin[None].round().astype(np.uint8)]).astype(np.float64)
    light = pixels @ (0.299, 0.587, 0.114)
    white = pixels[light >= np.quantile(light, 0.85)].mean(axis=0)
    # At least as light as the cheeks, with little of their colour.
    level = max(float(white @ (0.299, 0.587, 0.114)), 1.02 * float(skin @ (0.299, 0.587, 0.114)))
    hue = 0.65 * white / max(float(white.mean()), 1.0) + 0.35
    return np.clip(level * 1.04 * hue, 30.0, 245.0)


def _cavity_colour(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    lips = _mean_around(padded, points[[0, 17, 37, 267, 84, 314], :2])
    return np.clip(lips * (0.26, 0.15, 0.15), 6.0, 70.0)


def _mean_around(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    height, width = padded.shape[:2]
    x = np.clip(points[:, 0].round().astype(int), 1, width - 2)
    y = np.clip(points[:, 1].round().astype(int), 1, height - 2)
    patches = [
        padded[b - 1 : b + 2, a - 1 : a + 2].reshape(-1, 3) for a, b in zip(x, y, strict=True)
    ]
    mean: NDArray[np.float64] = np.concatenate(patches).astype(np.float64).mean(axis=0)
    return mean
