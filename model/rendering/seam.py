"""Skin around the mouth without the dark line where lips meet, for lips that part.

The mesh draws the portrait's line out with the lips: it would edge them, and smear beyond the
corners. As the mouth opens, a texture without it is drawn over the skin, by the same triangles.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.rendering.face_model import (
    LOWER_ROWS,
    MOUTH_CORNERS,
    MOUTH_RING,
    UPPER_ROWS,
    eased,
    smoothstep,
)
from model.rendering.raster import Packed, distance_map, draw_triangles, drawable, pack_rgba
from model.types import Floats

# In distances of the outer eye corners:
CREASE, LINE = 0.11, 0.035  # dark lines up to this thick are filled: beyond the corners, on lips
OUTWARD, WIDE, HIGH = 0.05, 0.11, 0.085  # an ellipse beyond each corner
HAIRLESS, HAIR = 0.35, 0.45  # of the light: a crease lacks less of it, a beard as much
BAND = 0.035  # lips, from their inner edge
MARGIN = 0.20
DRAWN_WHOLLY = 0.10  # lips that have parted this far
FILLED = 0.9  # of what the line lacks in light
LEVELS = 12  # textures, from faint to whole


@dataclass(frozen=True)
class PartedSeam:
    """``textures`` (12,) packed; ``triangles`` (N, 3) of the mesh's vertices ``used`` (M,), which
    lie at ``source`` (M, 2) in their pixels.

    ``gap`` is how far the lips are parted at rest, in distances of the outer eye corners.
    """

    textures: list[Packed]
    triangles: NDArray[np.int32]
    used: NDArray[np.int64]
    source: Floats
    gap: float

    @classmethod
    def of(
        cls,
        padded: NDArray[np.uint8],
        points: Floats,
        *,
        source: Floats,
        triangles: NDArray[np.int32],
        unit: float,
        gap: float,
    ) -> PartedSeam:
        """``points`` (478, 3), ``source`` (V, 2): landmarks and mesh, in pixels of ``padded``."""
        ring = points[MOUTH_RING, :2].astype(np.float64)
        low = np.maximum(np.floor(ring.min(axis=0) - MARGIN * unit), 0).astype(int)
        high = np.ceil(ring.max(axis=0) + MARGIN * unit).astype(int)
        part = padded[low[1] : high[1], low[0] : high[0]].astype(np.float32)
        ring -= low
        rows, columns = np.mgrid[: part.shape[0], : part.shape[1]] + 0.5
        left, right = (points[k, :2] - low for k in MOUTH_CORNERS)
        way = (right - left) / max(float(np.linalg.norm(right - left)), 1.0)
        beyond, creased = np.zeros(part.shape[:2]), _filled(part, CREASE * unit).sum(axis=2)
        lack = 1.0 - part.sum(axis=2) / np.maximum(creased, 1.0)
        for corner, side in ((left, -1.0), (right, 1.0)):
            x, y = corner + side * OUTWARD * unit * way
            along = (columns - x) * way[0] + (rows - y) * way[1]
            across = (rows - y) * way[0] - (columns - x) * way[1]
            far = np.hypot(along / (WIDE * unit), across / (HIGH * unit))
            cover = smoothstep((1.0 - far) / 0.6)
            mean_lack = float((cover * lack).sum() / max(cover.sum(), 1.0))
            hair = smoothstep((mean_lack - HAIRLESS) / (HAIR - HAIRLESS))
            beyond = np.maximum(beyond, (1.0 - hair) * cover)
        away = -distance_map(ring, part.shape[:2]) / unit
        near = smoothstep((BAND - away) / (0.6 * BAND))
        colour = part + near[..., None] * (_filled(part, LINE * unit) - part)
        colour += beyond[..., None] * (_filled(colour, CREASE * unit) - colour)
        cover = np.maximum(beyond, near)[..., None]
        whole = np.concatenate([colour * cover, 255.0 * cover], axis=2)
        shown = [np.round(whole * (level + 1) / LEVELS) for level in range(LEVELS)]
        there = np.floor(source - low).astype(int)
        inside = ((there >= 0) & (there < part.shape[1::-1])).all(axis=1)
        seen = inside.copy()
        seen[inside] = cv2.dilate(cover, np.ones((9, 9)))[there[inside, 1], there[inside, 0]] > 0
        skin = ~np.isin(triangles, MOUTH_RING).all(axis=1)
        chosen = triangles[skin & seen[triangles].any(axis=1) & inside[triangles].all(axis=1)]
        used, corners = np.unique(chosen, return_inverse=True)
        return cls(
            textures=[drawable(pack_rgba(one)) for one in shown],
            triangles=corners.reshape(-1, 3).astype(np.int32),
            used=used.astype(np.int64),
            source=np.ascontiguousarray(source[used] - low, np.float32),
            gap=gap,
        )

    def draw(self, target: Floats, *, face: Floats, out: NDArray[np.uint8]) -> None:
        """``target`` (V, 2) in pixels of ``out``; ``face`` (478, 3) in the head frame."""
        parted = (lip_gap(face) - self.gap) / DRAWN_WHOLLY
        level = round(LEVELS * eased(parted))
        if level < 1 or not len(self.triangles):
            return
        moved = target[self.used]
        heights = moved[:, 1]
        first = max(0, int(heights.min()))
        rows = out[first : int(heights.max()) + 2]
        if len(rows):
            heights -= np.float32(first)
            draw_triangles(self.triangles, moved, self.source, self.textures[level - 1], rows)


def lip_gap(face: Floats) -> float:
    """How far the middle of the lips is parted, in units of ``face`` (478, 3)."""
    return float((face[LOWER_ROWS[0], 1] - face[UPPER_ROWS[0], 1])[2:7].mean())


def _filled(picture: NDArray[np.float32], thick: float) -> NDArray[np.float32]:
    """(H, W, 3) without dark lines up to ``thick`` pixels wide; colours as beside them."""
    size = 2 * max(1, round(thick / 2)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    closed = cv2.morphologyEx(picture, cv2.MORPH_CLOSE, kernel)
    smooth = cv2.GaussianBlur(closed, (0, 0), 0.25 * size)
    lack = np.maximum(smooth - picture, 0.0)
    return picture + FILLED * lack
