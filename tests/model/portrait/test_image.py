"""Uploaded bytes become upright RGB, or an error that says what was wrong."""

import io

import numpy as np
import pytest
from PIL import Image

from model.portrait.image import PictureError, load_picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    ramp = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3) % 251
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_allowed_format_is_read(photo: Image.Image, kind: str) -> None:
    pixels = load_picture(encoded(photo, kind))
    assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8


def test_a_camera_on_its_side_is_turned_upright(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_picture(encoded(photo, "JPEG", exif=exif)).shape == (64, 48, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(photo: Image.Image, mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert load_picture(encoded(photo.convert(mode), kind)).shape == (48, 64, 3)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    grey = Image.fromarray((np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16))
    pixels = load_picture(encoded(grey, "PNG"))
    assert pixels[0, 0, 0] == 0 and pixels[-1, -1, 0] == 255
    assert abs(int(pixels[32, 0, 0]) - 128) < 4


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "not a readable picture"),
        (b"these are words", "not a readable picture"),
        (b"GIF89a" + bytes(40), "JPEG, PNG, WEBP"),
    ],
)
def test_what_is_no_picture_is_refused(blob: bytes, says: str) -> None:
    with pytest.raises(PictureError, match=says):
        load_picture(blob)


def test_a_truncated_file_is_refused(photo: Image.Image) -> None:
    blob = encoded(photo, "PNG")
    with pytest.raises(PictureError):
        load_picture(blob[: len(blob) // 2])


def test_too_small_and_too_large_are_named() -> None:
    with pytest.raises(PictureError, match="1x1.*at least 32"):
        load_picture(encoded(Image.new("RGB", (1, 1)), "PNG"))
    with pytest.raises(PictureError, match="10000x6000.*50000000"):
        load_picture(encoded(Image.new("1", (10000, 6000)), "PNG"))
