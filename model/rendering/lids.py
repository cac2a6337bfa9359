"""The lids as they close: skin drawn out from beyond the eye, and one soft line of lashes.

The mesh alone would squeeze what the portrait shows between its lids. So a closing lid is drawn
over eye and skin, from a texture of its skin that is made once per portrait.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.portrait.blendshapes import FACE_LANDMARKS
from model.rendering.face_model import Eye, smoothstep
from model.rendering.raster import Packed, _bilinear, _over, _smoothstep, pack_rgb
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
COLUMNS, ROWS = 128, 24  # of a lid's texture
# Places along an eye are shares of the way from its left to its right corner, heights are measured
# from the line between them, down.
FROM, TO = -0.2, 1.2
ALONG = np.linspace(FROM, TO, COLUMNS)
# In widths of the eye:
LASH_BAND = 0.07  # at the lid's edge: lashes, left out of the skin's texture
LASH_LINE = (0.012, 0.030)  # half the thickness of the drawn line
BELOW = 0.3  # below the corners there is skin
OVERLAP = 0.03  # the upper lid ends this far below the line on which the lids meet
SHADOW = 0.14  # how far the upper lid darkens the eye
# How light a lid's skin is at its edge, of what is usual above it; at least, of that below the eye.
DARKEST, LEAST_OF_BELOW = 0.9, 0.68
Heights = NDArray[np.float64]
LIGHT = np.array([0.299, 0.587, 0.114], np.float32)
# The share of an eye's opening from which on its lids are drawn, and from which on wholly.
DRAWN_FROM, DRAWN_WHOLLY = 0.05, 0.30


@dataclass(frozen=True)
class Lid:
    """``edge`` (9,), ``near`` and ``far`` (7,) are landmarks, from the left to the right.

    ``bend_edge`` (128, 9) and ``bend_fold`` (128, 7) give smooth curves from their heights.
    ``texture`` (24, 128) is the skin from fold to edge, ``depth`` (128,) its height in widths.
    """

    edge: NDArray[np.int64]
    near: NDArray[np.int64]
    far: NDArray[np.int64]
    bend_edge: NDArray[np.float64]
    bend_fold: NDArray[np.float64]
    depth: NDArray[np.float64]
    texture: Packed

    @classmethod
    def of(
        cls,
        padded: NDArray[np.uint8],
        line: _Line,
        places: NDArray[np.float64],
        *,
        edge: NDArray[np.int64],
        near: NDArray[np.int64],
        far: NDArray[np.int64],
    ) -> Lid:
        """``places`` (478, 2): the landmarks along ``line`` and below it."""
        held = np.where(np.isin(np.arange(9), (0, 8)), 4.0, 1.0)  # it ends in the corners
        bend_edge = _smooth(places[edge, 0], 4, weights=held)
        middle = 0.5 * (places[near] + places[far])
        bend_fold = _smooth(middle[:, 0], 3, weights=np.ones(7))
        rim, fold = bend_edge @ places[edge, 1], bend_fold @ middle[:, 1]
        high = np.abs(rim - fold)
        depth = high - np.minimum(LASH_BAND * line.length, 0.5 * high)
        heights = fold + np.linspace(0.0, 1.0, ROWS)[:, None] * depth * np.sign(rim - fold)
        under = np.full((1, COLUMNS), BELOW * line.length)
        below = np.median(_middle(line.sample(padded, under)[0]), axis=0).astype(np.float32)
        texture = pack_rgb(_without_lashes(line.sample(padded, heights), below))
        return cls(edge, near, far, bend_edge, bend_fold, depth / line.length, texture)

    def curves(self, heights: NDArray[np.float64]) -> tuple[Heights, Heights]:
        """(128,) heights each of edge and fold, from those of all landmarks."""
        fold = 0.5 * (heights[self.near] + heights[self.far])
        return self.bend_edge @ heights[self.edge], self.bend_fold @ fold


@dataclass(frozen=True)
class Lids:
    """Both lids of one eye.

    ``opening`` is the mean opening at rest, in widths; ``ends`` and ``lashes`` (128,) say how much
    of skin and lashes is drawn; ``lash`` is red, green, blue and half the line's thickness in
    widths.
    """

    corners: NDArray[np.int64]
    upper: Lid
    lower: Lid
    opening: float
    ends: NDArray[np.float64]
    lashes: NDArray[np.float64]
    lash: NDArray[np.float64]

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, eye: Eye) -> Lids:
        """``points`` (478, 3): the landmarks at rest, in pixels of ``padded`` (H, W, 3)."""
        order = slice(None, None, 1 if eye.side == "Right" else -1)  # left to right
        corners = np.array(eye.corners)[order]
        line = _Line.between(*points[corners, :2].astype(np.float64))
        places = line.places(points[:, :2].astype(np.float64))
        upper, lower = (
            Lid.of(
                padded,
                line,
                places,
                edge=np.array([eye.corners[0], *contour, eye.corners[1]])[order],
                near=np.array(near)[order],
                far=np.array(far)[order],
            )
            for contour, (near, far) in zip((eye.upper, eye.lower), FOLDS[eye.side], strict=True)
        )
        gaps = (places[lower.edge] - places[upper.edge])[:, 1] / line.length
        outer = ALONG[order]  # from the outer corner
        ends = smoothstep((outer + 0.20) / 0.14) * smoothstep((1.08 - outer) / 0.12)
        lashes = smoothstep((outer + 0.06) / 0.20) * smoothstep((1.02 - outer) / 0.12)
        return cls(
            corners=corners,
            upper=upper,
            lower=lower,
            opening=max(float(gaps.sum()) / 7, 1e-3),
            ends=ends,
            lashes=0.85 * lashes * (1.0 - 0.55 * smoothstep((outer - 0.3) / 0.7)),
            lash=_lashes(padded, line, upper.curves(places[:, 1])[0], skin=upper.texture),
        )

    def draw(self, target: Floats, out: NDArray[np.uint8]) -> None:
        """``target`` (478+, 2): the moved landmarks, in pixels of ``out``."""
        line = _Line.between(*target[self.corners].astype(np.float64))
        closed = 1.0 - self._opened(target, line) / self.opening
        alpha = _smoothstep((closed - DRAWN_FROM) / (DRAWN_WHOLLY - DRAWN_FROM))
        if alpha <= 0.0:
            return
        heights = line.places(target[:FACE_LANDMARKS].astype(np.float64))[:, 1]
        (upper, fold), (lower, under) = self.upper.curves(heights), self.lower.curves(heights)
        upper += OVERLAP * line.length * closed * np.clip(4 * ALONG * (1 - ALONG), 0.0, 1.0)
        for lid, edge, bent, lashes in (
            (self.lower, lower, under, 0.0 * self.lashes),
            (self.upper, upper, fold, self.lashes),
        ):
            curves = np.stack([edge, bent, lid.depth, self.ends, lashes])
            draw_lid(line.frame, curves, lid.texture, self.lash, alpha, closed, out)

    def _opened(self, points: Floats, line: _Line) -> float:
        """The mean opening between the corners, in widths."""
        across = (points[self.lower.edge] - points[self.upper.edge]).sum(axis=0) / 7
        return float(across @ (-line.along[1], line.along[0])) / line.length


@dataclass(frozen=True)
class _Line:
    """From an eye's left to its right corner."""

    start: NDArray[np.float64]
    along: NDArray[np.float64]  # unit
    length: float

    @classmethod
    def between(cls, left: NDArray[np.float64], right: NDArray[np.float64]) -> _Line:
        length = max(float(np.linalg.norm(right - left)), 1.0)
        return cls(left, (right - left) / length, length)

    @property
    def frame(self) -> NDArray[np.float64]:
        return np.array([*self.start, *self.along, self.length])

    def places(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2): share of the way along, and pixels below it."""
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


def _smooth(
    places: NDArray[np.float64], degree: int, *, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(128, N): least squares of a polynomial through N heights at ``places``, at `ALONG`."""
    basis = np.polynomial.chebyshev.chebvander(2.0 * places - 1.0, degree)
    at = np.polynomial.chebyshev.chebvander(
        2.0 * np.clip(ALONG, places.min(), places.max()) - 1.0, degree
    )
    return at @ np.linalg.pinv(basis * weights[:, None]) * weights


def _without_lashes(skin: NDArray[np.uint8], below: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Skin (24, 128, 3) that can be drawn out: even, and without lashes, towards the edge.

    ``below`` (3,) is the colour of the skin under the eye.
    """
    wide = cv2.GaussianBlur(skin, (0, 0), sigmaX=8.0, sigmaY=1.0).astype(np.float32)
    light, under = wide @ LIGHT, float(below @ LIGHT)
    # Skin is what is light in each column, or along the lid; brows and shade may hide all of it.
    usual = max(0.85 * float(np.quantile(_middle(light.T), 0.7)), LEAST_OF_BELOW * under)
    least = DARKEST * np.maximum(np.quantile(light, 0.8, axis=0), usual)
    own = np.quantile(wide, 0.7, axis=0)
    hue = own / np.maximum(own @ LIGHT, 1.0)[:, None] + below / max(under, 1.0)
    lack = np.maximum(least - light, 0.0)[..., None]
    even = cv2.GaussianBlur(wide + 0.5 * lack * hue, (0, 0), sigmaX=4.0, sigmaY=1.0)
    share = smoothstep(np.linspace(0.0, 1.6, ROWS))[:, None, None].astype(np.float32)
    return np.clip(skin + share * (even - skin) + 0.5, 0, 255).astype(np.uint8)


def _lashes(
    padded: NDArray[np.uint8], line: _Line, edge: Heights, *, skin: Packed
) -> NDArray[np.float64]:
    """Their colour, that of the darkest along the upper lid's edge, and half their thickness."""
    offsets = np.linspace(-0.14, 0.04, 19)
    band = line.sample(padded, edge + offsets[:, None] * line.length)
    seen = _middle(band.astype(np.float64).swapaxes(0, 1)).swapaxes(0, 1)
    light = seen @ LIGHT
    near = np.abs(offsets) < 0.06
    dark = seen[near][light[near] <= np.quantile(light[near], 0.15)].mean(axis=0)
    last = skin[-1].view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float64)
    plain = np.median(_middle(last), axis=0)
    level = float(dark.mean()) / max(float(plain.mean()), 1.0)
    if level > 0.7:
        dark = 0.7 * plain
    profile = light.mean(axis=1)
    run = (profile < 0.5 * (profile.min() + float(plain @ LIGHT))).sum() * 0.01
    return np.array([*dark, np.clip(0.5 * run, *LASH_LINE)])


def _middle(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Without the corners: the columns from a fifth to four fifths of the way."""
    return values[(ALONG > 0.2) & (ALONG < 0.8)]


@njit(cache=True, nogil=True)
def draw_lid(frame, curves, texture, lash, alpha, closed, out):  # type: ignore[no-untyped-def]
    """Draw skin from a lid's fold to its edge, and lashes along the edge, over ``out``.

    ``frame``: x, y, direction and length of the line between the eye's corners. ``curves`` (5, K)
    along it: heights of edge and fold in pixels; the texture's height in lengths, its last row at
    the edge; how much of skin and of lashes (0..1) is drawn. The skin is drawn out as far as the
    edge has moved, the more the nearer to the edge. ``closed``: share of the eye that is.
    """
    height, width, columns = out.shape[0], out.shape[1], curves.shape[1]
    x, y, ax, ay, length = frame[0], frame[1], frame[2], frame[3], frame[4]
    thick = max(0.6, lash[3] * length)
    far = max(5.0 * thick, SHADOW * length)
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
            edge, fold, depth, skin, hair = (
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
            if hair > 0.0 and beyond > 0.0:  # the lid's shadow on the eye
                dim = 0.4 * (1.0 - closed) * (1.0 - _smoothstep(beyond / (SHADOW * length)))
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
                # A closed lid is round: lighter in its middle.
                round_ = 4.0 * v * (1.0 - v) * 4.0 * t * (1.0 - t)
                lit = 1.0 + 0.09 * closed * (round_ - 0.45) * skin
                r = min(255.0, lit * (texel & np.uint32(255)))
                g = min(255.0, lit * ((texel >> np.uint32(8)) & np.uint32(255)))
                b = min(255.0, lit * ((texel >> np.uint32(16)) & np.uint32(255)))
                _over(out, row, column, r, g, b, cover)
            if hair > 0.0:
                # Lashes hang down: the line ends softly below.
                wide = thick * (1.0 if beyond < 0.0 else 1.0 + 0.8 * closed)
                line = alpha * hair * np.exp(-((beyond / wide) ** 2))
                _over(out, row, column, lash[0], lash[1], lash[2], line)
