"""Decode an uploaded picture to RGB pixels, as browsers show it.

Pixels are sRGB, whatever colour profile the file has. A large picture is reduced while it is
decoded, strip by strip, so that its memory stays bounded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
import pi_heif
from PIL import AvifImagePlugin, Image, ImageCms, UnidentifiedImageError

from model.types import Picture

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")
MAX_PIXELS = 50_000_000
MIN_SIDE = 32
# A picture is reduced by a whole number while its long side stays at or above this.
KEPT_SIDE = 2048
MAX_KEPT_PIXELS = (2 * KEPT_SIDE - 1) ** 2  # of a reduced picture

_STRIP_ROWS = 64
_ORIENTATION = 0x0112  # EXIF
_GROUND = 128  # behind transparent pixels
# Ancillary chunks that change what a PNG looks like; a damaged text is no reason to refuse one.
_PNG_KEPT = (b"tRNS", b"iCCP", b"eXIf")

pi_heif.register_heif_opener(thumbnails=False)
# Decoders may start no threads.
pi_heif.options.DECODE_THREADS = 1
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class PictureError(ValueError):
    """The bytes are no usable picture; the message gives the reason."""


@dataclass(frozen=True)
class LoadedPicture:
    """``pixels`` (H, W, 3) RGB, upright, of a picture that was ``width`` x ``height``."""

    pixels: Picture
    width: int
    height: int


def load_picture(blob: bytes) -> Picture:
    """(H, W, 3) RGB, see `load_upload`."""
    return load_upload(blob).pixels


def load_upload(blob: bytes) -> LoadedPicture:
    """Decode JPEG, PNG, WebP, AVIF or HEIC: upright (EXIF), in sRGB, transparency on mid-grey.

    Damage that loses no pixel is repaired: a missing end mark, a broken comment. Raises
    `PictureError` for anything else, a truncated file, more than 50 megapixels or a side shorter
    than 32 pixels.
    """
    if blob.startswith(_PNG):
        blob = _without_comments(blob)
    try:
        return _load(blob)
    except OSError as error:
        ended = _with_end_mark(blob)
        if ended is None:
            raise _unreadable(error) from error
        return _load(ended)


def _load(blob: bytes) -> LoadedPicture:
    """Raises ``OSError`` for a truncated file."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of "decompression bombs" far below our limit. The size is checked from
            # the header before any pixel is decoded.
            warnings.simplefilter("ignore")
            picture: Image.Image = Image.open(io.BytesIO(blob), formats=FORMATS)
            width, height = picture.size
            _check_size(width, height)
            orientation = _orientation(picture)
            factor = max(1, max(width, height) // KEPT_SIDE)
            if (
                factor > 1
                and picture.format == "WEBP"
                and not getattr(picture, "is_animated", False)
            ):
                picture = _large_webp(blob, picture, factor)
            picture.draft(None, (width // factor, height // factor))  # a JPEG may decode to less
            picture.load()
            factor = max(1, max(picture.size) // KEPT_SIDE)
            pixels = _turned(_reduced(picture, factor), orientation)
    except (PictureError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(None) from error
    except OSError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        raise _unreadable(error) from error
    on_its_side = orientation >= 5
    size = (height, width) if on_its_side else (width, height)
    return LoadedPicture(pixels, *size)


def _large_webp(blob: bytes, opened: Image.Image, factor: int) -> Image.Image:
    """The WebP that is ``opened``, decoded by OpenCV, which takes a third of Pillow's memory.

    Without transparency, it is reduced by a power of two up to ``factor`` on the way.
    """
    flags = cv2.IMREAD_UNCHANGED
    if opened.mode == "RGB":
        reduced = {1: cv2.IMREAD_REDUCED_COLOR_2, 2: cv2.IMREAD_REDUCED_COLOR_4}
        flags = reduced.get(factor.bit_length() - 1, cv2.IMREAD_REDUCED_COLOR_8)
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), flags)
    if pixels is None:
        raise OSError("the file is damaged or truncated")
    layers = pixels.shape[2]
    cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if layers == 4 else cv2.COLOR_BGR2RGB, pixels)
    mode = "RGBA" if layers == 4 else "RGB"
    picture = Image.frombuffer(mode, pixels.shape[1::-1], pixels, "raw", mode, 0, 1)
    picture.info = opened.info
    return picture


def _unreadable(error: Exception | None) -> PictureError:
    reason = "its format is another" if error is None else str(error)
    return PictureError(f"not a readable picture ({', '.join(FORMATS)} are allowed): {reason}")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"the picture has {width}x{height} pixels; at most {MAX_PIXELS} are allowed"
        )
    if min(width, height) < MIN_SIDE:
        raise PictureError(
            f"the picture is {width}x{height}; each side must have at least {MIN_SIDE}"
        )


def _orientation(picture: Image.Image) -> int:
    """1 to 8, as EXIF counts; 1 where the file says nothing valid."""
    with suppress(Exception):  # a damaged EXIF block says nothing
        value = picture.getexif().get(_ORIENTATION, 1)
        if value in range(1, 9):
            return int(value)
    return 1


def _turned(pixels: Picture, orientation: int) -> Picture:
    """Upright, given how the camera lay."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _reduced(picture: Image.Image, factor: int) -> Picture:
    """(H // factor, W // factor, 3) RGB, each pixel the mean of its square."""
    convert = _converter(picture)
    width, height = (side - side % factor for side in picture.size)
    out = np.empty((height // factor, width // factor, 3), np.uint8)
    rows = _STRIP_ROWS * factor if factor > 1 else height
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = convert(picture.crop((0, top, width, bottom)))
        if factor > 1:
            size = (width // factor, (bottom - top) // factor)
            strip = cv2.resize(strip, size, interpolation=cv2.INTER_AREA)
        out[top // factor : bottom // factor] = strip
    return out


def _converter(picture: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """A function from a part of ``picture`` to (h, w, 3) uint8 in sRGB."""
    if picture.mode in ("I", "I;16", "F"):  # 16-bit grey: Pillow's own conversion clips it
        highest = picture.getextrema()[1]
        top = 65535.0 if isinstance(highest, int | float) and highest > 255 else 255.0
        return lambda part: _grey(np.asarray(part, np.float32) * (255.0 / top))
    to_srgb = _profile_transform(picture)
    layered = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info

    def convert(part: Image.Image) -> np.ndarray:
        alpha = part.convert("RGBA").getchannel("A") if layered else None
        flat = to_srgb(part)
        if alpha is None:
            return np.asarray(flat, np.uint8)
        ground = Image.new("RGB", part.size, (_GROUND,) * 3)
        return np.asarray(Image.composite(flat, ground, alpha), np.uint8)

    return convert


def _grey(levels: np.ndarray) -> np.ndarray:
    eight = np.clip(levels, 0, 255).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2)


def _profile_transform(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """From the colour profile of ``picture`` to sRGB; a profile that cannot be used is ignored."""
    profile = picture.info.get("icc_profile")
    mode = {"CMYK": "CMYK", "L": "L", "LA": "L"}.get(picture.mode, "RGB")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" in ImageCms.getProfileDescription(given):
                return lambda part: part.convert("RGB")
            transform = ImageCms.buildTransform(
                given, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL
            )
            return lambda part: transform.apply(part.convert(mode))
    return lambda part: part.convert("RGB")


_PNG = b"\x89PNG\r\n\x1a\n"


def _without_comments(blob: bytes) -> bytes:
    """The PNG with only those chunks that its picture needs, ended if it is not."""
    kept = [_PNG]
    for kind, chunk in _chunks(blob):
        critical = kind[:1].isupper()
        crc = struct.unpack(">I", chunk[-4:])[0]
        if critical or (kind in _PNG_KEPT and zlib.crc32(chunk[4:-4]) == crc):
            kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
    kept.append(struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND")))
    return b"".join(kept)


def _chunks(blob: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, whole chunk) of each complete chunk of a PNG."""
    at = len(_PNG)
    while at + 12 <= len(blob):
        length, kind = struct.unpack_from(">I4s", blob, at)
        if at + 12 + length > len(blob):
            return
        yield kind, blob[at : at + 12 + length]
        at += 12 + length


def _with_end_mark(blob: bytes) -> bytes | None:
    """A JPEG that lacks nothing but its end mark, with one; else None.

    Whatever is missing, a decoder reads from what follows. So the picture is whole if it is the
    same before different bytes.
    """
    if not blob.startswith(b"\xff\xd8"):
        return None
    ended = [blob + filler + b"\xff\xd9" for filler in (b"", b"\x55" * 64, b"\xaa" * 64)]
    try:
        first, *others = (_load(one).pixels for one in ended)
    except (OSError, PictureError):
        return None
    return ended[0] if all(np.array_equal(first, other) for other in others) else None
