"""Uploaded bytes become upright RGB, or an error that says what was wrong."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from model.portrait.image import PictureError, load_picture, load_upload


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    ramp = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3) % 251
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
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
        (b"GIF89a" + bytes(40), "JPEG, PNG, WEBP, AVIF, HEIF"),
    ],
)
def test_what_is_no_picture_is_refused(blob: bytes, says: str) -> None:
    with pytest.raises(PictureError, match=says):
        load_picture(blob)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    blob = encoded(Image.fromarray(noise), kind)
    for share in (0.5, 0.97):
        with pytest.raises(PictureError) as refused:
            load_picture(blob[: int(share * len(blob))])
        assert " at 0x" not in str(refused.value)  # nothing of the process


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_a_jpeg_may_lack_its_end_mark(photo: Image.Image, options: dict[str, object]) -> None:
    blob = encoded(photo, "JPEG", **options)
    assert np.array_equal(load_picture(blob[:-2]), load_picture(blob))


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) ^ damage)
    )


@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(9_000_000))),
        chunk(b"tEXt", b"Comment\0damaged", damage=1),
        chunk(b"iCCP", b"p\0\0no profile"),
        chunk(b"eXIf", b"MM\0*\0\0"),
    ],
)
def test_a_png_is_read_whatever_its_comments_say(photo: Image.Image, odd: bytes) -> None:
    blob = encoded(photo, "PNG")
    head = 8 + 25  # the signature and IHDR
    assert np.array_equal(load_picture(blob[:head] + odd + blob[head:]), load_picture(blob))
    assert np.array_equal(load_picture(blob[:-12]), load_picture(blob))  # no IEND


def test_colours_are_those_of_srgb() -> None:
    """Skin in Display P3, as iPhones take it, is what a browser shows, not washed out."""
    red, green, blue = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))  # P3's primaries, D65
    profile = display_profile(red, green, blue)
    wide = Image.new("RGB", (64, 64), (180, 150, 130))
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        pixels = load_picture(encoded(wide, kind, icc_profile=profile))
        # By P3 → XYZ → sRGB on linear light.
        assert np.abs(pixels.reshape(-1, 3).mean(0) - (187.7, 148.8, 127.4)).max() < 4, kind
    layered = wide.convert("RGBA")
    pixels = load_picture(encoded(layered, "PNG", icc_profile=profile))
    assert np.abs(pixels.reshape(-1, 3).mean(0) - (187.7, 148.8, 127.4)).max() < 2
    for damaged in (b"", b"no profile", profile[:200]):
        assert load_picture(encoded(wide, "PNG", icc_profile=damaged))[0, 0].tolist() == [
            180, 150, 130,
        ]  # fmt: skip


def display_profile(*primaries: tuple[float, float]) -> bytes:
    """A minimal ICC profile (version 2) of a display with these primaries, D65 and gamma 2.2."""

    def xyz(x: float, y: float, z: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (x, y, z)))

    colours = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    to_xyz = colours * np.linalg.solve(colours, white)
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ to_xyz
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(2.2 * 256))
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(78)
    copyright = b"text" + bytes(4) + b"none\0\0\0\0"
    tags = [(b"desc", text), (b"cprt", copyright), (b"wtpt", xyz(*d50))]
    tags += [
        (name, xyz(*column))
        for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)
    ]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += struct.pack(">4s2I", name, at + len(data), len(content))
        data += content
    head = struct.pack(
        ">I4sI4s4s4s12x4s", at + len(data), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    head += bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in d50)) + bytes(48)
    return head[:128] + struct.pack(">I", len(tags)) + table + data


def test_a_large_picture_is_reduced_and_keeps_its_size() -> None:
    ramp = np.linspace(0, 255, 5000).astype(np.uint8)
    wide = Image.fromarray(np.broadcast_to(ramp[None, :, None], (400, 5000, 3)).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "WEBP", "JPEG"):
        loaded = load_upload(encoded(wide, kind, exif=exif))
        assert (loaded.width, loaded.height) == (400, 5000)
        assert loaded.pixels.shape == (2500, 200, 3)
        assert abs(int(loaded.pixels[1250, 100, 0]) - 127) <= 2


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("WEBP", np.uint8)])
def test_a_large_picture_takes_little_memory(kind: str, dtype: type) -> None:
    blob = encoded(Image.fromarray(np.zeros((5000, 5000), dtype)), kind)
    code = (
        "import resource, sys; from model.portrait.image import load_upload\n"
        "blob = sys.stdin.buffer.read()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); load_upload(blob); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=blob, capture_output=True, check=True)
    assert int(done.stdout) < 150_000  # kB: 6 bytes a pixel


def test_too_small_and_too_large_are_named() -> None:
    with pytest.raises(PictureError, match="1x1.*at least 32"):
        load_picture(encoded(Image.new("RGB", (1, 1)), "PNG"))
    with pytest.raises(PictureError, match="10000x6000.*50000000"):
        load_picture(encoded(Image.new("1", (10000, 6000)), "PNG"))
