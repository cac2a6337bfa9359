"""Real mouths with the lips parted: what a drawn mouth learns from and is compared with.

A folder of 256 × 176 crops with ``lips.npz``: the corners of the inner lips are at (64, 80) and
(192, 80), ``ring`` (N, 20, 2) is the inner lips' contour, in the order of `MOUTH_RING`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.image import load_picture
from model.types import Floats

WIDTH, HEIGHT = 256, 176  # pixels
CORNERS = np.array([[64.0, 80.0], [192.0, 80.0]])


@dataclass(frozen=True)
class Mouths:
    """``pictures`` (N, 176, 256, 3) RGB, ``rings`` (N, 20, 2), ``yaw`` (N,) radians."""

    names: list[str]
    pictures: NDArray[np.uint8]
    rings: Floats
    yaw: Floats

    def __getitem__(self, chosen: NDArray[np.generic]) -> Mouths:
        """Those of a mask or of indices (N',)."""
        index = np.arange(len(self.names))[chosen]
        names = [self.names[i] for i in index]
        return Mouths(names, self.pictures[index], self.rings[index], self.yaw[index])


def kept_apart(name: str) -> bool:
    """Whether the crop ``name`` is for evaluation only: a third of them, by their name's hash."""
    return hashlib.sha256(name.encode()).digest()[0] % 3 == 0


def load_mouths(folder: Path) -> tuple[Mouths, Mouths]:
    """The mouths to learn from, and those kept apart."""
    files = sorted(folder.glob("*.jpg"))
    with np.load(folder / "lips.npz") as lips:
        rings, yaw = lips["ring"].astype(np.float32), lips["yaw"].astype(np.float32)
    if len(files) != len(rings):
        raise ValueError(f"{folder}: {len(files)} pictures, expected {len(rings)} as in lips.npz")
    pictures = np.stack([load_picture(file.read_bytes()) for file in files])
    everything = Mouths([file.name for file in files], pictures, rings, yaw)
    apart = np.array([kept_apart(name) for name in everything.names])
    return everything[~apart], everything[apart]


def align(picture: NDArray[np.uint8], ring: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Cut a mouth out of ``picture`` as the crops are: (176, 256, 3) and its contour there.

    ``ring`` (20, 2) is in pixels of ``picture``; a similarity takes its corners to `CORNERS`.
    """
    (x0, y0), (x1, y1) = ring[[0, 10]].tolist()
    # The turn and scale that take the way between the corners to the one between CORNERS.
    turn = (CORNERS[1, 0] - CORNERS[0, 0]) / complex(x1 - x0, y1 - y0)
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    matrix = np.column_stack([linear, CORNERS[0] - linear @ (x0, y0)])
    crop = cv2.warpAffine(
        picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return crop, np.asarray(ring @ linear.T + matrix[:, 2], np.float32)
