"""The rims of lids and lips: skin that is drawn up to a moving edge.

The mesh stretches what the portrait shows at an edge: lashes, teeth, half an iris. So near an edge
that has moved, skin from further off is drawn in its place, from a texture that is made once per
portrait, and a soft stroke along the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.rendering.raster import _bilinear, _over, _smoothstep

COLUMNS, ROWS = 128, 24  # of a texture
# Places along an eye or the mouth are shares of the way from its left to its right corner.
FROM, TO = -0.2, 1.2
ALONG = np.linspace(FROM, TO, COLUMNS)
Heights = NDArray[np.float64]  # below the line between the corners


@dataclass(frozen=True)
class CornerLine:
    """From the left to the right corner of an eye or the mouth."""

    start: NDArray[np.float64]
    along: NDArray[np.float64]  # unit
    length: float

    @classmethod
    def between(cls, left: NDArray[np.float64], right: NDArray[np.float64]) -> CornerLine:
        length = max(float(np.linalg.norm(right - left)), 1.0)
        return cls(left, (right - left) / length, length)

    @property
    def frame(self) -> NDArray[np.float64]:
        return np.array([*self.start, *self.along, self.length])

    def places(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2): share of the way along, and height: pixels below it."""
        x, y = self.along
        away = points - self.start
        return np.stack([away @ (x, y) / self.length, away @ (-y, x)], axis=1)

    def sample(self, picture: NDArray[np.uint8], heights: Heights) -> NDArray[np.uint8]:
        """(R, 128, 3): the picture at ``heights`` (R, 128), one column for each of `ALONG`."""
        x, y = self.along
        way = ALONG * self.length
        columns = (self.start[0] + way * x - heights * y - 0.5).astype(np.float32)
        rows = (self.start[1] + way * y + heights * x - 0.5).astype(np.float32)
        return cv2.remap(picture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class Rim:
    """Skin that ends in an edge: a lid's or a lip's.

    ``edge`` (N + 2,), with the corners, ``near`` and ``far`` (N,) are rows of landmarks from the
    left to the right; the skin is drawn from the fold, half way between the last two.
    ``bend_edge`` (128, N + 2) and ``bend_fold`` (128, N) give smooth curves from their heights;
    ``depth`` (128,): how high the texture is, in lengths of the line between the corners.
    """

    edge: NDArray[np.int64]
    near: NDArray[np.int64]
    far: NDArray[np.int64]
    bend_edge: Heights
    bend_fold: Heights
    depth: Heights

    @classmethod
    def of(
        cls,
        line: CornerLine,
        places: NDArray[np.float64],
        rows: Sequence[NDArray[np.int64]],
        *,
        left_out: float,
        bends: int,
    ) -> Rim:
        """``places`` (478, 2): the landmarks along ``line`` and below it; ``rows``: see `Rim`.

        ``left_out`` of the line's length, at most half of the skin, is left out of the texture at
        the edge. ``bends`` is the degree of the edge's polynomial.
        """
        edge, near, far = rows
        held = np.ones(len(edge))
        held[[0, -1]] = 4.0  # it ends in the corners
        middle = 0.5 * (places[near] + places[far])
        bend_edge = _smooth(places[edge, 0], bends, weights=held)
        bend_fold = _smooth(middle[:, 0], 3, weights=np.ones(len(near)))
        high = np.abs(bend_edge @ places[edge, 1] - bend_fold @ middle[:, 1]) / line.length
        depth = high - np.minimum(left_out, 0.5 * high)
        return cls(edge, near, far, bend_edge, bend_fold, depth)

    def curves(self, heights: Heights) -> tuple[Heights, Heights]:
        """(128,) heights each of edge and fold, from those of all landmarks."""
        fold = 0.5 * (heights[self.near] + heights[self.far])
        return self.bend_edge @ heights[self.edge], self.bend_fold @ fold

    def skin(
        self, picture: NDArray[np.uint8], line: CornerLine, heights: Heights
    ) -> NDArray[np.uint8]:
        """(24, 128, 3): what is between the fold and the edge in ``picture``."""
        edge, fold = self.curves(heights)
        share = np.linspace(0.0, 1.0, ROWS)[:, None]
        return line.sample(picture, fold + share * self.depth * line.length * np.sign(edge - fold))


def _smooth(
    places: NDArray[np.float64], degree: int, *, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(128, N): least squares of a polynomial through N heights at ``places``, at `ALONG`."""
    basis = np.polynomial.chebyshev.chebvander(2.0 * places - 1.0, degree)
    at = np.polynomial.chebyshev.chebvander(
        2.0 * np.clip(ALONG, places.min(), places.max()) - 1.0, degree
    )
    return at @ np.linalg.pinv(basis * weights[:, None]) * weights


def middle(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Without the corners: the columns (128, …) from a fifth to four fifths of the way."""
    return values[(ALONG > 0.2) & (ALONG < 0.8)]


@njit(cache=True, nogil=True)
def draw_rim(frame, curves, texture, stroke, look, out):  # type: ignore[no-untyped-def]
    """Draw skin from a fold to a moved edge, and a stroke along the edge, over ``out``.

    ``frame``: x, y, direction and length of the line between the corners. ``curves`` (5, K) along
    it: heights of edge and fold in pixels; the texture's height in lengths, its last row at the
    edge; how much of skin and of stroke (0..1) is drawn. The skin is drawn out as far as the edge
    has moved, the more the nearer to the edge. ``stroke``: red, green, blue, half thickness in
    lengths. ``look``: opacity of all; how dark what lies beyond the edge is shaded, how far in
    lengths; how round the skin is lit; how much further the stroke reaches beyond the edge.
    """
    height, width, columns = out.shape[0], out.shape[1], curves.shape[1]
    x, y, ax, ay, length = frame[0], frame[1], frame[2], frame[3], frame[4]
    alpha, shade, reach, roundness, hang = look[0], look[1], look[2], look[3], look[4]
    thick = max(0.6, stroke[3] * length)
    far = max(5.0 * thick, reach * length)
    low, high = curves[:2].min() - far, curves[:2].max() + far
    x_first, x_last, y_first, y_last = 1e9, -1e9, 1e9, -1e9
    for k in range(4):
        along = (FROM if k < 2 else TO) * length
        up = low if k % 2 == 0 else high
        px, py = x + along * ax - up * ay, y + along * ay + up * ax
        x_first, x_last = min(x_first, px), max(x_last, px)
        y_first, y_last = min(y_first, py), max(y_last, py)
    for row in range(max(0, int(y_first)), min(height, int(y_last) + 2)):
        for column in range(max(0, int(x_first)), min(width, int(x_last) + 2)):
            dx, dy = column + 0.5 - x, row + 0.5 - y
            t = (dx * ax + dy * ay) / length
            if t <= FROM or t >= TO:
                continue
            at = (t - FROM) / (TO - FROM) * (columns - 1)
            k = min(int(at), columns - 2)
            share = at - k
            edge, fold, depth, skin, ink = (
                curves[0, k] * (1.0 - share) + curves[0, k + 1] * share,
                curves[1, k] * (1.0 - share) + curves[1, k + 1] * share,
                curves[2, k] * (1.0 - share) + curves[2, k + 1] * share,
                curves[3, k] * (1.0 - share) + curves[3, k + 1] * share,
                curves[4, k] * (1.0 - share) + curves[4, k + 1] * share,
            )
            side = 1.0 if edge >= fold else -1.0
            whole = max(abs(edge - fold), 1e-3)
            beyond = (dy * ax - dx * ay - edge) * side
            v = 1.0 + beyond / whole
            if v <= 0.0 or beyond > far:
                continue
            if shade > 0.0 and beyond > 0.0:
                dim = shade * (1.0 - _smoothstep(beyond / (reach * length)))
                _over(out, row, column, 0.0, 0.0, 0.0, alpha * skin * dim)
            # Beyond the corners upper and lower skin are one.
            soft = 1.0 + length * max(0.0, 0.05 - t, t - 0.95)
            cover = min(1.0, max(0.0, 0.5 - beyond / soft))
            cover *= alpha * skin * _smoothstep(v / 0.2)
            if cover > 0.0:
                stretch = max(1.0, whole / max(depth * length, 0.5))
                source = 1.0 - max(0.0, 1.0 - v) ** stretch
                texel = _bilinear(
                    texture,
                    np.int64(at * 256.0),
                    np.int64(source * (texture.shape[0] - 1) * 256.0),
                )
                bulge = 4.0 * v * (1.0 - v) * 4.0 * t * (1.0 - t)
                lit = 1.0 + roundness * (bulge - 0.45) * skin
                r = min(255.0, lit * (texel & np.uint32(255)))
                g = min(255.0, lit * ((texel >> np.uint32(8)) & np.uint32(255)))
                b = min(255.0, lit * ((texel >> np.uint32(16)) & np.uint32(255)))
                _over(out, row, column, r, g, b, cover)
            if ink > 0.0:
                wide = thick * (1.0 if beyond < 0.0 else 1.0 + hang)
                line = alpha * ink * np.exp(-((beyond / wide) ** 2))
                _over(out, row, column, stroke[0], stroke[1], stroke[2], line)
