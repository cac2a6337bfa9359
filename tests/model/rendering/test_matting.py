"""A person over another background: no fringe on hair, no holes, no debris."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model.rendering.matting import Layers, split
from model.types import Colour, Floats

SIDE = 320
CENTRE = (160, 170)
GREEN = (0, 255, 0)


def test_hair_brings_nothing_of_the_background_along() -> None:
    true = np.maximum(head(), hair())
    layers = parted(true, person=(40, 30, 25), behind=(235, 230, 225))
    assert np.abs(layers.alpha - true).mean() < 0.003
    rgba = layers.person.view(np.uint8).reshape(SIDE, SIDE, 4)
    assert rgba[..., :3][true < 0.9].max() < 60  # the hair's own colour at most, and no white


def test_a_face_as_dark_as_the_wall_has_no_holes() -> None:
    true = head()
    layers = parted(true, person=(95, 70, 55), behind=(80, 58, 44))
    inside = cv2.erode(true, np.ones((7, 7))) == 1.0
    assert layers.alpha[inside].min() > 0.8


def test_what_the_mask_found_beside_the_person_is_left_out() -> None:
    true, debris = head(), np.zeros((SIDE, SIDE), np.float32)
    cv2.circle(debris, (40, 290), 6, 1.0, -1)
    layers = parted(true, person=(150, 110, 90), behind=(90, 95, 80), also=debris)
    assert layers.alpha[270:310, 20:60].max() == 0.0


def head() -> Floats:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    return np.clip(45.5 - np.hypot(x - CENTRE[0], 0.85 * (y - CENTRE[1])) / 2, 0.0, 1.0)


def hair() -> Floats:
    strands = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    for angle in np.linspace(-2.9, -0.3, 45):
        root, tip = (
            (round(4 * (CENTRE[0] + wide * np.cos(a))), round(4 * (CENTRE[1] + high * np.sin(a))))
            for wide, high, a in ((88, 100, angle), (100, 115, angle + 0.08))
        )
        cv2.line(strands, root, tip, 255, 3, cv2.LINE_AA)
    return cv2.resize(strands, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / np.float32(255)


def parted(
    true: Floats, *, person: Colour, behind: Colour, also: NDArray[np.float32] | None = None
) -> Layers:
    """Part a noisy picture of ``person`` by a blurred mask that reaches some pixels too far."""
    noise = np.random.default_rng(0).normal(0, 3, (2, SIDE, SIDE, 1))
    share = np.maximum(true, 0.0 if also is None else also)[..., None]
    mixed = share * (np.array(person) + noise[0]) + (1 - share) * (np.array(behind) + noise[1])
    picture = np.clip(mixed, 0, 255).round().astype(np.uint8)
    blurred = cv2.dilate(head(), np.ones((7, 7)))
    mask = cv2.GaussianBlur(np.maximum(blurred, 0.0 if also is None else also), (0, 0), 5)
    turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    face = np.stack([160 + 60 * np.cos(turns), 180 + 70 * np.sin(turns)], axis=1)
    return split(picture, mask, face.astype(np.float32), eye_distance=90, background=GREEN)
