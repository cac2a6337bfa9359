"""Derive `model/weights/mouth.safetensors`: teeth, gums and tongue as textures.

Teeth are learned from photographs of real mouths (US official portraits, public domain). In each
one, dynamic programming finds the boundaries of the eight front upper teeth, and the edge of the
row gives where each tooth ends. Every tooth is then warped to a common cell, divided by the colour
of the photograph's own incisors, and averaged over the photographs that show it: what lips hide in
one is seen in another. Outlines are parametric, so that they stay crisp at any scale; the arch's
depth is that of ICT-FaceKit's teeth (MIT).

    python -m training.mouth_textures --mouths mouths --ict ict_facekit.npz
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from model.models import WEIGHTS
from training.data.mouths import load_mouths

Array = NDArray[np.float64]

OUT = WEIGHTS / "mouth.safetensors"

# Photographs to learn from (not `kept_apart`) whose eight boundaries were checked by eye.
# fmt: off
PHOTOGRAPHS = [
    0, 1, 16, 25, 34, 35, 51, 55, 59, 63, 65, 88, 91, 113, 115, 145, 155, 156, 170, 171, 184, 199,
    202, 214, 229, 240, 254, 264, 266, 272, 274, 276, 277, 296, 299, 317, 332]
# fmt: on
# Lengths below are in widths of an upper central incisor, which is this many eye distances.
INCISOR = 0.0935
TEXELS = 36  # an incisor's width
# Widths seen from the front, from the midline outwards: the upper ones' first four are the
# photographs' medians.
UPPER_WIDTHS = (1.0, 0.69, 0.65, 0.50, 0.36, 0.28)
LOWER_WIDTHS = (0.62, 0.66, 0.70, 0.56, 0.40, 0.30)
CELL = (64, 40)  # rows, columns of a tooth's cell
CELL_TOP, CELL_BOTTOM = 1.3, -0.1  # of a cell, above the tooth's edge
EDGE_SOFTNESS = 0.04
STEEPEST = 0.9
EDGE_BLUR = (0.10, 0.22)


@dataclass(frozen=True)
class Outline:
    """One tooth: ``edge`` and ``height`` above the row's line, rounding of its two corners."""

    edge: float
    height: float
    inner: tuple[float, float]  # (amount, exponent) towards the midline
    outer: tuple[float, float]


UPPER = (
    Outline(0.00, 1.28, (0.05, 7.0), (0.10, 4.0)),
    Outline(0.06, 1.14, (0.08, 4.5), (0.16, 3.0)),
    Outline(0.00, 1.28, (0.16, 1.8), (0.20, 1.8)),
    Outline(0.08, 1.08, (0.14, 2.2), (0.16, 2.2)),
    Outline(0.11, 1.00, (0.14, 2.2), (0.16, 2.2)),
    Outline(0.14, 0.94, (0.10, 2.5), (0.12, 2.5)),
)
LOWER = (
    Outline(0.00, 0.92, (0.05, 6.0), (0.06, 5.0)),
    Outline(0.01, 0.95, (0.06, 5.0), (0.09, 4.0)),
    Outline(-0.03, 1.05, (0.13, 1.9), (0.16, 1.9)),
    Outline(0.04, 0.90, (0.13, 2.2), (0.14, 2.2)),
    Outline(0.08, 0.85, (0.12, 2.2), (0.12, 2.2)),
    Outline(0.10, 0.80, (0.10, 2.5), (0.10, 2.5)),
)
HALF_WIDTH, GUM_TOP, BELOW_EDGE = 3.5, 1.8, 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mouths", type=Path, required=True)
    parser.add_argument("--ict", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    cells = learn_cells(args.mouths)
    ict = np.load(args.ict)
    save_file(
        {
            "upper": row_texture(cells, UPPER, UPPER_WIDTHS),
            "lower": row_texture(cells, LOWER, LOWER_WIDTHS)[::-1].copy(),
            "tongue": tongue_texture(),
            "upper_depth": arch_depth(ict, lower=False),
            "lower_depth": arch_depth(ict, lower=True),
        },
        args.out,
        metadata={
            "unit": "distance of the outer eye corners",
            "origin": "US official portraits (public domain), ICT-FaceKit (MIT)",
        },
    )
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


def learn_cells(folder: Path) -> Array:
    """(8, rows, columns, 3): log colour of each upper tooth over that of the central incisors."""
    mouths, _ = load_mouths(folder)
    total = np.zeros((8, *CELL, 3))
    weight = np.zeros((8, *CELL))
    for number in PHOTOGRAPHS:
        index = mouths.names.index(f"{number:03d}.jpg")
        photo = mouths.pictures[index].astype(np.float32) / 255
        ring = mouths.rings[index].astype(np.float64)
        teeth, light = teeth_mask(photo, ring)
        top, bottom = first_run(teeth)
        bounds = boundaries(light, top, bottom, ring)
        add_teeth(photo, (top, bottom), bounds, total=total, weight=weight)
    return np.stack([fill(t, w) for t, w in zip(total, weight, strict=True)])


def teeth_mask(photo: NDArray[np.float32], ring: Array) -> tuple[NDArray[np.bool_], Array]:
    """Where a photograph shows teeth: light and not red, inside the lips; and its L*."""
    inside = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.round(ring * 16).astype(np.int32)], 1, shift=4)
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB).astype(np.float64)
    light, red, lips = lab[..., 0], lab[..., 1], inside > 0
    bright = light > 0.6 * np.percentile(light[lips], 85)
    return lips & bright & (red < np.percentile(red[lips], 20) + 12), light


def first_run(teeth: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last row of each column's uppermost run of teeth; -1 where there is none."""
    top = np.full(teeth.shape[1], -1)
    bottom = np.full(teeth.shape[1], -1)
    for x in np.flatnonzero(teeth.sum(axis=0) >= 4):
        rows = np.flatnonzero(teeth[:, x])
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 2) + 1)
        long = [run for run in runs if len(run) >= 4]
        if long:
            top[x], bottom[x] = long[0][0], long[0][-1]
    return top, bottom


def boundaries(
    light: Array, top: NDArray[np.int64], bottom: NDArray[np.int64], ring: Array
) -> Array:
    """(9,) columns: the boundaries of eight upper teeth, the midline fifth.

    The path along dark seams whose widths fit `UPPER_WIDTHS`, over all sizes of teeth.
    """
    step = 2  # half pixels
    smooth = gaussian_filter(light, (1.0, 0.8))
    valley = np.zeros_like(smooth)
    for d in (3, 4, 5):
        sides = np.minimum(np.roll(smooth, d, 1), np.roll(smooth, -d, 1))
        valley += (sides - smooth) / np.maximum(smooth, 10) / 3
    seam = np.zeros(light.shape[1])
    for x in np.flatnonzero(top >= 0):
        start = top[x] + int(0.15 * (bottom[x] - top[x]))
        seam[x] = np.clip(valley[start : bottom[x] + 1, x], -0.03, 0.15).mean()
    places = np.arange(light.shape[1] * step) / step
    seam = np.interp(places, np.arange(light.shape[1]), gaussian_filter1d(seam, 0.7))
    allowed = (places > ring[:, 0].min()) & (places < ring[:, 0].max())
    ratios = np.array([*UPPER_WIDTHS[3::-1], *UPPER_WIDTHS[:4]])
    best, found = -np.inf, np.zeros(9)
    for size in np.arange(15.0, 28.0):
        score, back = np.where(allowed, seam, -1e9), []
        for k, width in enumerate(ratios * size):
            new, came = np.full(len(places), -1e9), np.zeros(len(places), int)
            for w in range(int(step * width * 0.75), int(step * width * 1.3) + 2):
                reached = np.full(len(places), -1e9)
                reached[w:] = score[:-w] - 0.25 * np.log(w / step / width) ** 2
                better = reached > new
                new[better] = reached[better]
                came[better] = np.flatnonzero(better) - w
            # The midline is the surest seam.
            score = np.where(allowed, new + (2.0 if k == 3 else 1.0) * seam, -1e9)
            back.append(came)
        path = [int(np.argmax(score))]
        for came in back[::-1]:
            path.append(int(came[path[-1]]))
        at = places[path[::-1]]
        total = score[path[0]] - 0.2 * np.log(size / 20) ** 2
        total -= 0.0004 * abs(at[4] - ring[:, 0].mean())
        if total > best:
            best, found = float(total), at
    return found


def add_teeth(
    photo: NDArray[np.float32],
    run: tuple[NDArray[np.int64], NDArray[np.int64]],
    bounds: Array,
    *,
    total: Array,
    weight: Array,
) -> None:
    """Add one photograph's teeth to the sums of their cells."""
    top, bottom = run
    linear = np.where(photo <= 0.04045, photo / 12.92, ((photo + 0.055) / 1.055) ** 2.4)
    shown = np.zeros(photo.shape[:2])
    for column in np.flatnonzero(top >= 0):
        shown[top[column] + 1 : bottom[column] + 1, column] = 1.0
    shown = gaussian_filter(shown, 0.5)
    unit = float(np.diff(bounds)[3:5].mean())
    across = (np.arange(CELL[1]) + 0.5) / CELL[1]
    above = CELL_TOP - (np.arange(CELL[0]) + 0.5) / CELL[0] * (CELL_TOP - CELL_BOTTOM)
    incisors = None
    for k in (3, 4, 2, 5, 1, 6, 0, 7):
        left, width = bounds[k], bounds[k + 1] - bounds[k]
        columns = np.arange(int(np.ceil(left + 0.2 * width)), int(left + 0.8 * width) + 1)
        columns = columns[bottom[columns] > 0]
        if len(columns) < 3:
            continue
        slope, level = np.polyfit(columns, bottom[columns] + 0.5, 1)
        if len(columns) < 5 or abs(slope) > 0.6:
            slope, level = 0.0, float(np.median(bottom[columns])) + 0.5
        x = np.broadcast_to(left + across * width, CELL)
        y = slope * x + level - above[:, None] * unit
        colour = np.stack(
            [map_coordinates(linear[..., c], [y, x], order=3, mode="nearest") for c in range(3)],
            axis=-1,
        )
        if incisors is None:
            incisors = np.median(colour[27:53, 10:30].reshape(-1, 3), axis=0)
        seen = np.clip(map_coordinates(shown, [y, x], order=1, mode="nearest") - 0.3, 0, 1)
        total[k] += seen[..., None] * np.clip(np.log(np.maximum(colour, 0.002) / incisors), -2, 0.7)
        weight[k] += seen


def fill(total: Array, weight: Array) -> Array:
    """The weighted mean; where few photographs show the tooth, continued from where many do."""
    out = np.zeros_like(total)
    left = np.ones_like(weight)
    for sigma in (0.0, 1.5, 3.0, 6.0, 12.0, 24.0):
        t = gaussian_filter(total, (sigma, sigma, 0)) if sigma else total
        w = gaussian_filter(weight, sigma) if sigma else weight
        sure = np.clip(w / 8.0, 0.0, 1.0) ** 2 * left if sigma < 24 else left
        out += sure[..., None] * t / np.maximum(w, 1e-6)[..., None]
        left = left - sure
    return out


def row_texture(
    cells: Array, outlines: tuple[Outline, ...], widths: tuple[float, ...]
) -> NDArray[np.uint8]:
    """(H, W, 5): colour over the tint (200: equal), share of gum, alpha; edge of the row below."""
    rows = round((GUM_TOP + BELOW_EDGE) * TEXELS)
    columns = round(2 * HALF_WIDTH * TEXELS)
    x = (np.arange(columns) + 0.5) / TEXELS - HALF_WIDTH
    y = GUM_TOP - (np.arange(rows) + 0.5) / TEXELS
    starts = np.concatenate([[0.0], np.cumsum(widths)])
    tooth = np.minimum(np.searchsorted(starts, np.abs(x), side="right") - 1, len(widths) - 1)
    # -1 at the side of the midline, 1 at the other.
    u = np.clip(2 * (np.abs(x) - starts[tooth]) / np.array(widths)[tooth] - 1, -1.3, 1.3)
    edge, gum, fall = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    for c in range(columns):
        shape = outlines[tooth[c]]
        amount, power = shape.inner if u[c] < 0 else shape.outer
        edge[c] = shape.edge + amount * abs(u[c]) ** power
        gum[c] = shape.height + shape.edge - 0.26 * abs(u[c]) ** 2.4
        fall[c] = amount
    # Irregular as real rows are, or they look like a denture.
    edge += 0.012 * np.sin(5.1 * x + 0.7) + 0.010 * np.sin(11.3 * x)
    above = y[:, None] - edge
    ratio = np.zeros((rows, columns, 3))
    for c in range(columns):
        side = 1 if x[c] > 0 else -1
        place = min(tooth[c], 3)
        cell = cells[4 + place if side > 0 else 3 - place]
        t = (u[c] * side + 1) / 2 * CELL[1] - 0.5
        # The last bit above the edge is blurred with the lip below it.
        height = np.maximum(y - outlines[tooth[c]].edge, EDGE_BLUR[outlines is LOWER])
        v = (CELL_TOP - height) / (CELL_TOP - CELL_BOTTOM) * CELL[0] - 0.5
        at = [np.clip(v, 0, CELL[0] - 1), np.full(rows, np.clip(t, 0, CELL[1] - 1))]
        for channel in range(3):
            ratio[:, c, channel] = map_coordinates(cell[..., channel], at, order=1)
    ratio = np.exp(ratio / 2.2)
    # Seams, blurred in the mean, are thin and dark: darkest at the gums and towards the edge.
    seam_at = np.concatenate([-starts[:0:-1], starts])
    away = np.abs(x[:, None] - seam_at).min(axis=1)
    depth = 0.16 + 0.30 * np.exp(-np.maximum(above, 0) / 0.12) + 0.12 * (above / 0.9) ** 2
    ratio *= 1.0 - (np.clip(depth, 0, 0.5) * np.exp(-((away / 0.028) ** 2)))[..., None]
    # Enamel is thin at the edge: a little darker and bluer there.
    thin = np.exp(-np.maximum(above, 0) / 0.10)[..., None]
    ratio *= 1.0 - thin * np.array([0.10, 0.08, 0.05])
    gums = _smoothstep((y[:, None] - gum) / 0.06 + 0.5)
    bulge = 1.0 - 0.16 * np.abs(np.clip(u, -1, 1)) ** 2
    rim = np.exp(-((y[:, None] - gum - 0.05) ** 2) / (2 * 0.04**2))
    gum_light = bulge * (0.94 + 0.10 * rim - 0.08 * np.clip(y[:, None] - gum, 0, 1))
    ratio *= 1.0 - 0.15 * np.exp(-np.abs(y[:, None] - gum) / 0.05)[..., None] * (
        1 - gums[..., None]
    )
    ratio = ratio * (1 - gums[..., None]) + gum_light[..., None] * gums[..., None]
    alpha = _smoothstep(above / EDGE_SOFTNESS + 0.5)
    alpha *= _smoothstep((HALF_WIDTH - 0.05 - np.abs(x)) / 0.3)
    alpha *= _smoothstep((GUM_TOP - y[:, None]) / 0.3)
    texture = np.concatenate([ratio * 200, gums[..., None] * 255, alpha[..., None] * 255], axis=2)
    return np.clip(np.round(texture), 0, 255).astype(np.uint8)


def tongue_texture() -> NDArray[np.uint8]:
    """(80, 160, 3): light (200: the tint), moist highlights and alpha of a tongue from the front.

    It is 0.52 eye distances wide and 0.26 high, with 0.02 above its crest.
    """
    y, x = np.mgrid[:80, :160] + 0.5
    across, down = x / 80 - 1, 0.26 * y / 80 - 0.02
    # A shallow dome with a groove, lit from the front: its back falls into the dark.
    side = np.abs(across) * 0.26 / 0.235
    below = down - 0.055 * side**2.6 - 0.006 * np.exp(-((side / 0.10) ** 2))
    rng = np.random.default_rng(0)
    grain = gaussian_filter(rng.normal(size=x.shape), 1.0)
    light = 0.50 + 0.50 * _smoothstep(below / 0.09)
    light *= (1 - 0.35 * side**2.2) * (1 + 0.03 * grain / grain.std())
    light *= 1 - 0.09 * np.exp(-((side / 0.08) ** 2)) * _smoothstep(below / 0.02)
    moist = np.exp(-(((side - 0.34) / 0.20) ** 2) - ((below - 0.060) / 0.018) ** 2)
    blots = gaussian_filter(rng.normal(size=x.shape), 3.0)
    moist *= np.clip(0.6 + 0.3 * blots / blots.std(), 0, 1.5) / 1.5
    alpha = _smoothstep((below + 0.020) / 0.036) * _smoothstep((1.06 - side) / 0.16)
    channels = np.stack([light * 200, moist * 255, alpha * 255], axis=2)
    return np.round(np.clip(channels, 0, 255)).astype(np.uint8)


def arch_depth(ict: np.lib.npyio.NpzFile, *, lower: bool) -> NDArray[np.float32]:
    """(W,): how far each column lies behind the incisors, in eye distances."""
    neutral = ict["neutral"].astype(np.float64)[17039:21451]
    names = [str(name) for name in ict["expression_names"]]
    falls = np.abs(ict["expressions"][names.index("jawOpen"), 17039:21451, 1]) > 0.5
    teeth = neutral[falls == lower]
    unit = 0.88 / 1.0  # cm an incisor
    columns = round(2 * HALF_WIDTH * TEXELS)
    x = np.abs((np.arange(columns) + 0.5) / TEXELS - HALF_WIDTH)
    front = np.array(
        [
            teeth[np.abs(np.abs(teeth[:, 0]) / unit - at) < 0.12, 2].max(initial=-np.inf)
            for at in np.arange(0, 3.6, 0.05)
        ]
    )
    front = np.minimum.accumulate(np.where(np.isfinite(front), front, np.inf))
    front = gaussian_filter1d(front, 3.0, mode="nearest")
    profile = np.diff(front[0] - front, prepend=0.0) / unit
    # No steeper, or the far side of a turned head would fold over itself.
    profile = np.cumsum(np.minimum(profile, STEEPEST * 0.05))
    depth = np.interp(x, np.arange(0, 3.6, 0.05), profile) * INCISOR
    return depth.astype(np.float32)


def _smoothstep(t: NDArray[np.floating]) -> Array:
    t = np.clip(t, 0.0, 1.0)
    smooth: Array = t * t * (3 - 2 * t)
    return smooth


if __name__ == "__main__":
    main()
