"""The colours of a portrait's mouth, estimated from its eyes, lips and cheeks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model.rendering.face_model import EYES
from model.types import Floats


def tooth_colour(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
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
    # Photographs have teeth as light as 44 x cheek^0.295; eyes say what this portrait's light adds.
    cheek = max(float(skin @ (0.299, 0.587, 0.114)), 1.0)
    usual = np.clip(44.2 * cheek**0.295, 0.95 * cheek, 1.6 * cheek)
    level = np.sqrt(usual * np.clip(white @ (0.299, 0.587, 0.114), 0.9 * cheek, 1.6 * cheek))
    hue = 0.65 * white / max(float(white.mean()), 1.0) + 0.35
    # Enamel is warmer than the white of an eye; grey pictures stay grey.
    warm = 1.0 + np.clip(np.ptp(skin) / 45.0, 0.0, 1.0) * np.array([0.02, 0.0, -0.07])
    return np.clip(level * 1.12 * hue * warm, 30.0, 245.0)


def soft_colours(
    padded: NDArray[np.uint8], points: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gums and the cavity's walls, in full light."""
    lips = _mean_around(padded, points[[0, 17, 37, 267, 84, 314], :2])
    skin = _mean_around(padded, points[[50, 280, 205, 425], :2])
    # Mucosa as skin of this colour has it; grey skin has a grey one.
    hue = float(np.clip(np.ptp(skin) / 45.0, 0.0, 1.0))
    mucosa = skin * (1.0 + hue * (np.array([0.80, 0.50, 0.50]) - 1.0))
    return 0.6 * mucosa + 0.4 * lips, 0.5 * mucosa + 0.5 * lips


def light_tilt(padded: NDArray[np.uint8], points: Floats) -> float:
    """Which side is lit: -0.4 (the picture's left) to 0.4, by the cheeks."""
    left, right = (
        float(_mean_around(padded, points[p, :2]).mean()) for p in ([50, 205], [280, 425])
    )
    return float(np.clip(1.5 * (right - left) / max(right + left, 1.0), -0.4, 0.4))


def darker(colour: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """``colour`` in the dark: ``share`` of its light, its hue deeper; grey stays grey."""
    light = max(float(colour @ (0.299, 0.587, 0.114)), 1.0)
    return np.clip(share * light * (colour / light) ** 1.5, 3.0, 255.0)


def _mean_around(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    height, width = padded.shape[:2]
    x = np.clip(points[:, 0].round().astype(int), 1, width - 2)
    y = np.clip(points[:, 1].round().astype(int), 1, height - 2)
    patches = [
        padded[b - 1 : b + 2, a - 1 : a + 2].reshape(-1, 3) for a, b in zip(x, y, strict=True)
    ]
    mean: NDArray[np.float64] = np.concatenate(patches).astype(np.float64).mean(axis=0)
    return mean
