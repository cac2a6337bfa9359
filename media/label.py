"""A visible label in a corner of every frame, drawn on an encoder's planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from media.colour import Plane

MAX_LETTERS = 24
# In shares of the picture's short side, and in pixels where that would be too small to read.
_LETTERS, _MIN_LETTERS = 0.048, 13
_MARGIN = 0.024
_PLATE_OPACITY = 0.72
_BLACK, _WHITE, _GREY = 16, 235, 128  # limited range


@dataclass(frozen=True)
class Label:
    """White text on a dark plate, top right: each plane becomes ``(plane * keep + add) >> 8``.

    ``rows`` and ``columns`` are even bounds in the picture; the arrays are uint16, those of
    ``chroma_keep`` and ``chroma_add`` of half the size.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    keep: NDArray[np.uint16]
    add: NDArray[np.uint16]
    chroma_keep: NDArray[np.uint16]
    chroma_add: NDArray[np.uint16]

    def draw(self, y: Plane, u: Plane, v: Plane) -> None:
        """Draw on the planes of one 4:2:0 picture, in place."""
        (top, bottom), (left, right) = self.rows, self.columns
        _blend(y[top:bottom, left:right], self.keep, self.add)
        for plane in (u, v):
            corner = plane[top // 2 : bottom // 2, left // 2 : right // 2]
            _blend(corner, self.chroma_keep, self.chroma_add)


def _blend(corner: Plane, keep: NDArray[np.uint16], add: NDArray[np.uint16]) -> None:
    corner[:] = (corner * keep + add) >> 8


@dataclass(frozen=True)
class LabelText:
    """What to draw: up to `MAX_LETTERS` letters, in the font of a TrueType or OpenType file.

    The default font is Pillow's own, so that every machine draws the same; it has the letters of
    ASCII. Raises ``ValueError`` for a font that cannot be read, or that lacks a letter.
    """

    text: str
    font: Path | None = None

    def __post_init__(self) -> None:
        if not self.text.strip() or len(self.text) > MAX_LETTERS:
            raise ValueError(f"label = {self.text!r}, expected 1 to {MAX_LETTERS} letters")
        font = self.sized(_MIN_LETTERS)
        missing = bytes(font.getmask("\uffff"))  # what the font draws for letters that it lacks
        for letter in self.text:
            if not letter.isprintable() or bytes(font.getmask(letter)) == missing:
                raise ValueError(f"label = {self.text!r}: the font has no {letter!r}")

    def sized(self, pixels: int) -> ImageFont.FreeTypeFont:
        if self.font is not None:
            try:
                return ImageFont.truetype(str(self.font), pixels)
            except OSError as error:
                raise ValueError(f"label's font = {self.font}: {error}") from error
        font = ImageFont.load_default(pixels)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise ValueError("Pillow has no FreeType here, which a label needs")
        return font


@lru_cache(maxsize=16)
def make_label(label: LabelText, width: int, height: int) -> Label:
    """``label`` for pictures of ``width`` by ``height`` pixels, both even."""
    short, text = min(width, height), label.text
    margin = _even(_MARGIN * short)
    for size in range(max(_MIN_LETTERS, round(_LETTERS * short)), 0, -1):
        font = label.sized(size)
        left, top, right, bottom = font.getbbox(text)
        pad = max(3, round(0.35 * (bottom - top)))
        plate_w, plate_h = _even(right - left + 2 * pad), _even(bottom - top + 2 * pad)
        if plate_w + 2 * margin <= width:
            break
    x, y = width - margin - plate_w, margin
    plate, letters = (Image.new("L", (plate_w, plate_h)) for _ in range(2))
    corners = (0, 0, plate_w - 1, plate_h - 1)
    ImageDraw.Draw(plate).rounded_rectangle(corners, radius=pad, fill=round(255 * _PLATE_OPACITY))
    ImageDraw.Draw(letters).text((pad - left, pad - top), text, fill=255, font=font)
    ink = np.asarray(letters, np.float64) / 255
    cover = np.asarray(plate, np.float64) / 255 * (1 - ink)  # of the plate
    see_through = 1 - ink - cover
    halved = see_through.reshape(plate_h // 2, 2, plate_w // 2, 2).mean(axis=(1, 3))
    return Label(
        (y, y + plate_h),
        (x, x + plate_w),
        _fixed(see_through),
        _fixed(ink * _WHITE + cover * _BLACK),
        _fixed(halved),
        _fixed((1 - halved) * _GREY),
    )


def _even(pixels: float) -> int:
    """The next even number from ``pixels`` on."""
    return 2 * math.ceil(pixels / 2)


def _fixed(share: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.rint(256 * share).astype(np.uint16)
