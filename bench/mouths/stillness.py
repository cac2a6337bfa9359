"""How far drawn teeth slip on the skull while the lips move.

Of teeth that are known to be fixed it measures up to 0.1 pixels, and up to 0.5 where little of them
is seen.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.mouths.drawing import MOUTH_RING, Drawn
from model.rendering.raster import distance_map

STEPS = 30
BAND = 0.085  # of the eye corners' distance: how far below the upper lip teeth are followed


def slip(first: Drawn, second: Drawn) -> float:
    """Pixels that the upper teeth move between two pictures of the same head pose.

    Lucas and Kanade's least squares for one shift, over what is seen of the teeth in both.
    """
    seen = np.minimum(_band(first), _band(second))
    if (seen > 0.5).sum() < 40:
        return float("nan")
    still, moved = _detail(first.picture), _detail(second.picture)
    rows, columns = np.mgrid[: still.shape[0], : still.shape[1]].astype(np.float32)
    shift = np.zeros(2)
    for _ in range(STEPS):
        there = cv2.remap(
            moved, columns + np.float32(shift[0]), rows + np.float32(shift[1]), cv2.INTER_LINEAR
        )
        slopes = np.stack([cv2.Sobel(there, cv2.CV_32F, *d, scale=1 / 8) for d in ((1, 0), (0, 1))])
        weighted = slopes * seen
        matrix = np.tensordot(weighted, slopes, axes=((1, 2), (1, 2)))
        matrix += 1e-3 * np.trace(matrix) * np.eye(2)
        step = np.linalg.solve(matrix, np.tensordot(weighted, still - there, axes=((1, 2), (0, 1))))
        shift += step
        if np.abs(step).max() < 1e-3:
            break
    return float(np.hypot(*shift))


def _detail(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Local contrast: shade moves with the lips, edges of teeth do not."""
    grey = np.log(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) + 4.0)
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.8)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), 2.0)
    return np.asarray(detail / (np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 3.0)) + 0.02))


def _band(drawn: Drawn) -> NDArray[np.float32]:
    """(H, W) 0..1: inside the lips by four pixels, not far below the upper one."""
    points = drawn.points
    inner = distance_map(points[MOUTH_RING], drawn.picture.shape[:2])
    reach = BAND * float(np.linalg.norm(points[33] - points[263]))
    upper = points[MOUTH_RING[1:10]]
    rows = np.arange(drawn.picture.shape[0])[:, None] + 0.5
    columns = np.arange(drawn.picture.shape[1]) + 0.5
    edge = np.interp(columns, upper[:, 0], upper[:, 1])
    near = np.clip(edge + reach - rows, 0.0, 1.0)
    return (np.clip(inner - 4.0, 0.0, 1.0) * near).astype(np.float32)


def light_change(first: Drawn, second: Drawn) -> float:
    """How much lighter or darker, as a share, the upper teeth are in the second picture."""
    seen = np.minimum(_band(first), _band(second))
    if (seen > 0.5).sum() < 40:
        return float("nan")
    light, other = (
        float((cv2.cvtColor(one.picture, cv2.COLOR_RGB2GRAY) * seen).sum())
        for one in (first, second)
    )
    return abs(np.log(other / light))
