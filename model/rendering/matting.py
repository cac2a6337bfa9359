"""Split a framed portrait into two layers: the moving person over a still background, its own or
a plain colour."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.rendering.raster import Packed, pack_rgba
from model.types import Colour, Floats

# The mask is blurry: below the first value a pixel is background, above the second person.
SURELY_NOT, SURELY = 0.15, 0.85
# Of 255, between person and background: colours that close are parted by the mask alone, that
# far by colour too; its noise is averaged out below, and single hairs show above.
ALIKE, APART = 10.0, 30.0
NOISY, CLEAR = 40.0, 80.0
# Of 255: how far from every mix of person and background a colour is one, and is none.
MIXED, FOREIGN = 20.0, 60.0


@dataclass(frozen=True)
class Layers:
    """``person`` (H, W) packed, premultiplied by its alpha; ``plate`` (H, W, 3) RGB behind it.

    The unmoved person over the plate of the picture's own background gives the picture again,
    whatever the mask missed: the person is defined as the difference between picture and plate.
    """

    person: Packed
    alpha: Floats
    plate: NDArray[np.uint8]


def split(
    picture: NDArray[np.uint8],
    mask: Floats,
    face: Floats,
    *,
    eye_distance: float,
    background: Colour | None = None,
) -> Layers:
    """``picture`` (H, W, 3) RGB; ``mask`` (H, W) 0..1; ``face`` (N, 2): its outline, pixels.

    ``background`` is the plate's colour; None: the picture's own, filled in behind the person.
    """
    radius = max(2, round(0.05 * eye_distance))
    # The filter also finds edges far from the person; the mask rules them out.
    near = cv2.dilate(mask, np.ones((2 * radius + 1, 2 * radius + 1))) > SURELY_NOT
    alpha = _ramp(_guided(picture, mask, radius), SURELY_NOT, SURELY) * near
    within = np.zeros(mask.shape, np.float32)
    cv2.fillPoly(within, [face.round().astype(np.int32)], 1.0)
    soft = max(1, round(0.05 * eye_distance)) * 2 + 1
    alpha = np.maximum(alpha, cv2.GaussianBlur(cv2.erode(within, np.ones((soft, soft))), (0, 0), 2))
    alpha = np.where(alpha > 0.995, 1.0, np.where(alpha < 0.005, 0.0, alpha)).astype(np.float32)
    # Keep a distance from the person, or hair that the mask missed would stay on the plate.
    margin = max(1, round(0.04 * eye_distance)) * 2 + 1
    known = (cv2.dilate(alpha, np.ones((margin, margin))) < 0.01).astype(np.float32)
    plate = _behind(picture, known)
    if background is None:
        alpha = np.maximum(alpha, _least_alpha(picture, plate))
    else:
        sure = cv2.erode((alpha == 1.0).astype(np.float32), np.ones((margin, margin)))
        edge = (known + sure) == 0.0
        alpha = np.where(edge, _mixed_alpha(picture, plate, _behind(picture, sure), alpha), alpha)
        alpha = np.maximum(alpha, cv2.erode(within, np.ones((soft, soft))))
        alpha *= _attached(alpha, sure)
    # What its edges have of the picture's own background does not go with the person.
    person = np.clip(picture - (1.0 - alpha[..., None]) * plate, 0, 255.0 * alpha[..., None])
    if background is not None:
        plate[:] = background
    packed = np.concatenate([person, 255.0 * alpha[..., None]], axis=2).round().astype(np.uint8)
    return Layers(
        person=pack_rgba(packed),
        alpha=alpha,
        plate=plate.astype(np.uint8),
    )


def _behind(picture: NDArray[np.uint8], known: Floats) -> Floats:
    """The picture where ``known`` is 1, filled in elsewhere: whole numbers, 0..255."""
    half = (picture.shape[1] // 2, picture.shape[0] // 2)
    small = cv2.resize(picture, half, interpolation=cv2.INTER_AREA).astype(np.float32)
    seen = (cv2.resize(known, half, interpolation=cv2.INTER_AREA) > 0.99).astype(np.float32)
    filled = cv2.resize(_fill(small, seen).round(), known.shape[::-1]).round()
    return np.where(known[..., None] > 0, picture, filled).astype(np.float32)


def _least_alpha(picture: NDArray[np.uint8], plate: Floats) -> Floats:
    """The smallest alpha with which some colour, 0..255, over the plate gives the picture."""
    seen = picture.astype(np.float32)
    darker = (seen + 1.0) / (plate + 1.0)
    brighter = (256.0 - seen) / (256.0 - plate)
    red, green, blue = cv2.split(np.minimum(darker, brighter))
    return np.clip(1.0 - np.minimum(np.minimum(red, green), blue), 0.0, 1.0)


def _mixed_alpha(picture: NDArray[np.uint8], plate: Floats, person: Floats, mask: Floats) -> Floats:
    """The share of ``person`` in the picture's mix of it and ``plate``.

    Where the two are alike, or the picture is no mix of them, colour says nothing and ``mask``
    stays. Otherwise it is corrected: its soft border follows no single hair.
    """
    apart = person - plate
    length = np.linalg.norm(apart, axis=2)
    above = picture - plate
    share = (above * apart).sum(axis=2) / np.maximum(length, 1.0) ** 2
    clear = _ramp(length, NOISY, CLEAR)
    share = np.clip(clear * share + (1.0 - clear) * cv2.GaussianBlur(share, (0, 0), 2), 0.0, 1.0)
    foreign = np.linalg.norm(above - share[..., None] * apart, axis=2)
    trust = _ramp(length, ALIKE, APART) * (1.0 - _ramp(foreign, MIXED, FOREIGN))
    return np.asarray(mask + trust * (share - mask), np.float32)


def _attached(alpha: Floats, sure: Floats) -> NDArray[np.bool_]:
    """Where ``alpha`` is connected with a part of the person that is ``sure``."""
    _, parts = cv2.connectedComponents((alpha > 0.02).astype(np.uint8))
    return np.isin(parts, np.setdiff1d(parts[sure > 0.0], [0]))


def _ramp(values: Floats, low: float, high: float) -> Floats:
    return np.clip((values - low) / (high - low), 0.0, 1.0).astype(np.float32)


def _guided(picture: NDArray[np.uint8], mask: Floats, radius: int) -> Floats:
    """The mask aligned with the picture's edges (guided filter: He, Sun and Tang, ECCV 2010)."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(x: NDArray[np.floating]) -> Floats:
        return np.asarray(cv2.blur(x, size), np.float32)

    grey_mean, mask_mean = mean(grey), mean(mask)
    variance = mean(grey * grey) - grey_mean * grey_mean
    slope = (mean(grey * mask) - grey_mean * mask_mean) / (variance + 4e-4)
    offset = mask_mean - slope * grey_mean
    return np.clip(mean(slope) * grey + mean(offset), 0.0, 1.0)


def _fill(picture: Floats, known: Floats) -> Floats:
    """Fill unknown pixels from known ones, more coarsely with distance (push-pull)."""
    if min(known.shape) <= 2 or known.min() > 0:
        total = max(float(known.sum()), 1e-6)
        mean = (picture * known[..., None]).sum(axis=(0, 1)) / total
        return np.where(known[..., None] > 0, picture, mean).astype(np.float32)
    half = ((known.shape[1] + 1) // 2, (known.shape[0] + 1) // 2)
    weight = cv2.resize(known, half, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(picture * known[..., None], half, interpolation=cv2.INTER_AREA)
    colour = colour / np.maximum(weight, 1e-6)[..., None]
    coarse = _fill(colour, (weight > 0.05).astype(np.float32))
    wide = cv2.resize(coarse, known.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(picture * known[..., None] + wide * (1.0 - known[..., None]), np.float32)
