"""The teeth that a portrait shows, taken over into the texture of the upper row.

So they stay that person's when the mouth opens: learned teeth continue them beneath the lips.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_HEIGHT, LEAST_WIDTH = 0.28, 1.8  # incisors: less of a row is not worth taking over
LEAST_LIGHT = 0.72  # of a tooth's colour, as the eyes' whites have it
LEAST_FIT = 0.11  # incisors between its edge and the learned one's
BRIGHT, RED = 0.62, 12.0  # of the brightest; over the least red, in a*
REDDER_LIPS = 8.0  # where lips are redder than teeth by this, what is nearer to them is no tooth
GAP = 0.45  # of the brightest: darker is a gap between teeth
SHADOW = 0.15  # incisors below the row's upper end
REACH = 2.1  # incisors from the midline: beyond, seams and edges are unsure
SHIFTS = np.linspace(-0.5, 0.5, 21)  # incisors
SIZES = np.linspace(0.84, 1.16, 17)


@dataclass(frozen=True)
class View:
    """A portrait in the texture's frame: ``picture`` (H, W, 3) and its distance to the lips, in
    texels, positive inside."""

    picture: Array
    inside: Array


@dataclass(frozen=True)
class OwnRow:
    """``colour`` (H, W, 3) and ``alpha`` (H, W): the row of upper teeth; ``moved`` rows its edge
    lies below the learned one's; ``gain`` (3,) its colour over the learned one's."""

    colour: Array
    alpha: Array
    moved: float
    gain: Array


def take_over(
    view: View, colour: Array, alpha: Array, *, tooth: Array, texels: float
) -> OwnRow | None:
    """The learned row (``colour``, ``alpha``) fitted to, and overlaid with, the teeth in ``view``.

    None where it shows none.
    """
    teeth = _teeth(view)
    top, bottom = _first_run(teeth, least=max(2, round(LEAST_HEIGHT * texels)))
    shown = np.flatnonzero(top >= 0)
    rows, columns = alpha.shape
    central = shown[np.abs(shown - columns / 2) < 2 * texels]
    if len(central) < LEAST_WIDTH * texels:
        return None
    y = np.arange(rows)[:, None]
    run = (y >= top) & (y <= bottom) & (top >= 0)
    if view.picture[run].mean() < LEAST_LIGHT * tooth.mean():
        return None
    size, shift = _fit_seams(view, (top, bottom), colour, texels=texels)
    x = (np.arange(columns) - columns / 2 - shift) / size + columns / 2
    edge = np.array([np.max(np.flatnonzero(a > 0.5), initial=0) for a in alpha.T])
    apart = bottom[shown] - np.interp(x[shown], np.arange(columns), edge)
    centre = (shown - columns / 2) / texels
    trust = np.exp(-((centre / 1.8) ** 2))
    curve = np.polynomial.Polynomial.fit(centre, apart, 2, w=trust)
    for _ in range(3):  # not by what is no tooth
        near = trust / (1.0 + ((apart - curve(centre)) / (0.12 * texels)) ** 2)
        curve = np.polynomial.Polynomial.fit(centre, apart, 2, w=near)
    if np.median(np.abs(apart - curve(centre))) > LEAST_FIT * texels:
        return None
    across = (np.arange(columns) - columns / 2) / texels
    limit = np.clip(across, max(centre.min(), -REACH), min(centre.max(), REACH))
    moved = curve(limit)
    # Each tooth is a little longer or shorter than learned.
    own_edge = np.zeros((2, columns))
    left_over = apart - curve(centre)
    own_edge[0, shown] = np.where(np.abs(left_over) < 0.3 * texels, 1.0, 0.0)
    own_edge[1, shown] = own_edge[0, shown] * left_over
    known, apart = cv2.GaussianBlur(own_edge, (0, 0), 0.12 * texels, sigmaY=1e-3)
    moved = moved + apart / np.maximum(known, 0.3)
    grid_y = np.arange(rows)[:, None] - moved[None, :]
    grid_x = np.broadcast_to(x, alpha.shape)
    maps = grid_x.astype(np.float32), grid_y.astype(np.float32)
    base = cv2.remap(colour, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(alpha, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    soft = texels / 12
    # What hangs below the row's edge is a lip or the other row.
    within = np.clip((edge[np.clip(x, 0, columns - 1).astype(int)] + moved - y) / soft + 1.5, 0, 1)
    within *= np.clip((REACH + 0.6 - np.abs(across)) / 0.4, 0, 1)
    within *= np.clip(view.inside / (2 * soft) - 0.8, 0, 1)
    own, solid = (
        np.clip(2 * within * cv2.GaussianBlur(seen.astype(np.float64), (0, 0), soft) - 0.6, 0, 1)
        for seen in (_with_gaps(run, view, texels), run)
    )
    solid = (solid > 0.8).astype(np.float64)[..., None]
    ratio = _ratio(solid * view.picture, solid * base, sigma=0.8 * texels)
    mixed = np.clip(base * np.clip(ratio, 0.5, 1.8), 0, 255)
    mixed += own[..., None] * (view.picture - mixed)
    cover = np.maximum(cover, own)
    whole = solid.sum()
    gain = (solid * view.picture).sum((0, 1)) / np.maximum((solid * base).sum((0, 1)), 1.0)
    middle = float(moved[columns // 2])
    return OwnRow(mixed, cover, middle, gain if whole else np.ones(3))


def _teeth(view: View) -> NDArray[np.bool_]:
    lips = view.inside > 0.5
    if lips.sum() < 20:
        return np.zeros(lips.shape, bool)
    lab = cv2.cvtColor((view.picture / 255).astype(np.float32), cv2.COLOR_RGB2LAB)
    light, red = lab[..., 0], lab[..., 1]
    bright = lips & (light > BRIGHT * np.percentile(light[lips], 85))
    reddest = np.percentile(red[lips], 20) + RED
    palest = np.percentile(red[bright], 10)
    around = (view.inside < -1.0) & (view.inside > -4.0)
    redness = np.median(red[around]) if around.any() else palest
    if redness > palest + REDDER_LIPS:
        reddest = min(reddest, 0.5 * (palest + redness))
    return bright & (red < reddest)


def _with_gaps(run: NDArray[np.bool_], view: View, texels: float) -> NDArray[np.bool_]:
    """Teeth and the gaps where some are missing, so that none is drawn there."""
    light = view.picture.mean(axis=2)
    dark = (light < GAP * np.percentile(light[run], 85)) & (view.inside > 0.15 * texels)
    # What is dark above a row of teeth is the lip's shadow.
    under = np.arange(len(run))[:, None] > run.argmax(axis=0) + SHADOW * texels
    dark &= under | ~run.any(axis=0)
    shape = np.ones((2 * round(0.12 * texels) + 1,) * 2, np.uint8)
    closed = cv2.morphologyEx((run | dark).astype(np.uint8), cv2.MORPH_CLOSE, shape)
    return np.asarray(closed > 0)


def _first_run(
    teeth: NDArray[np.bool_], *, least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last row of each column's uppermost run of teeth; -1 where there is none."""
    top, bottom = np.full(teeth.shape[1], -1), np.full(teeth.shape[1], -1)
    for x in np.flatnonzero(teeth.sum(axis=0) >= least):
        rows = np.flatnonzero(teeth[:, x])
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 2) + 1)
        long = [run for run in runs if len(run) >= least]
        if long:
            top[x], bottom[x] = long[0][0], long[0][-1]
    return top, bottom


def _fit_seams(
    view: View,
    run: tuple[NDArray[np.int64], NDArray[np.int64]],
    colour: Array,
    *,
    texels: float,
) -> tuple[float, float]:
    """Size and shift (texels) that lay the learned seams over the portrait's."""
    top, bottom = run
    columns = len(top)
    light = view.picture.mean(axis=2)
    seen = np.zeros(columns)
    for x in np.flatnonzero(top >= 0):
        seen[x] = light[top[x] : bottom[x] + 1, x].mean()
    ours = _seams(np.where(top >= 0, seen, np.nan), texels)
    crown = colour.mean(axis=2)[round(1.0 * texels) : round(1.6 * texels)].mean(axis=0)
    learned = _seams(crown, texels)
    at = np.arange(columns) - columns / 2
    weight = np.exp(-((at / texels / 2.2) ** 2)) * (top >= 0)
    best = (-np.inf, 1.0, 0.0)
    for size in SIZES:
        for shift in SHIFTS * texels:
            there = np.interp((at - shift) / size, at, learned)
            score = float((weight * ours * there).sum())
            score -= (
                0.05
                * float((weight * learned**2).sum())
                * (((size - 1) / 0.1) ** 2 + (shift / texels / 0.3) ** 2)
            )
            best = max(best, (score, float(size), float(shift)))
    return best[1], best[2]


def _seams(light: Array, texels: float) -> Array:
    """How much darker than its surroundings each column is, as a share; 0 where unknown."""
    known = np.isfinite(light).astype(np.float64)
    filled = np.where(known > 0, light, 0.0)

    def blur(values: Array, sigma: float) -> Array:
        wide: Array = cv2.GaussianBlur(values[None], (0, 0), sigma)[0]
        return wide

    fine = blur(filled, 0.06 * texels) / np.maximum(blur(known, 0.06 * texels), 0.05)
    coarse = blur(filled, 0.3 * texels) / np.maximum(blur(known, 0.3 * texels), 0.05)
    return np.clip(1 - fine / np.maximum(coarse, 1.0), -0.2, 0.2) * known


def _ratio(a: Array, b: Array, *, sigma: float) -> Array:
    """Blurred ``a`` over blurred ``b``, continued by their overall ratio."""
    whole_a, whole_b = a.sum((0, 1)), b.sum((0, 1))
    few = 0.02 * whole_b / max(1.0, b.shape[0] * b.shape[1] / sigma**2)
    near_a, near_b = (cv2.GaussianBlur(v, (0, 0), sigma) for v in (a, b))
    overall = whole_a / np.maximum(whole_b, 1.0)
    few = few / sigma**2 + 1e-3
    ratio: Array = (near_a + few * overall) / (near_b + few)
    return ratio
