"""Decode an uploaded picture to RGB pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
MIN_SIDE = 32


class PictureError(ValueError):
    """The bytes are no usable picture; the message gives the reason."""


def load_picture(blob: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG or WebP to (H, W, 3) uint8 RGB, upright (EXIF), transparency on mid-grey.

    Raises `PictureError` for anything else, a truncated file, more than 50 megapixels or a side
    shorter than 32 pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of "decompression bombs" far below our limit. The size is checked from
            # the header before any pixel is decoded.
            warnings.simplefilter("ignore")
            picture: Image.Image = Image.open(io.BytesIO(blob), formats=FORMATS)
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"the picture has {width}x{height} pixels; at most {MAX_PIXELS} are allowed"
                )
            if min(width, height) < MIN_SIDE:
                raise PictureError(
                    f"the picture is {width}x{height}; each side must have at least {MIN_SIDE}"
                )
            picture = ImageOps.exif_transpose(picture)
            return _flatten(picture)
    except PictureError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        raise PictureError(
            f"not a readable picture ({', '.join(FORMATS)} are allowed): {error}"
        ) from error


def _flatten(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode in ("I", "I;16", "F"):  # 16-bit grey: Pillow's own conversion clips it
        grey = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if grey.max() > 255 else 255.0
        eight = np.clip(grey / top * 255.0, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(eight[..., None], 3, axis=2))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (128, 128, 128, 255))
        picture = Image.alpha_composite(ground, layered)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), dtype=np.uint8))
