from __future__ import annotations

import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from media.colour import to_yuv420
from media.encoders import VideoEncoder

EDGE = 99


def planes(rgb: NDArray[np.uint8], wider: int = 0) -> list[NDArray[np.uint8]]:
    height, width = rgb.shape[:2]
    made = [np.full((height // n, width // n + wider), EDGE, np.uint8) for n in (1, 2, 2)]
    to_yuv420(rgb, *made)
    return made


def bt709(rgb: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """ITU-R BT.709-6, items 3.2 to 3.4, without rounding; limited range, chroma of 2x2 means."""
    height, width = rgb.shape[:2]
    four = rgb.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    luma, small = (p @ (0.2126, 0.7152, 0.0722) for p in (rgb / 255.0, four / 255.0))
    blue, red = four[..., 2] / 255.0 - small, four[..., 0] / 255.0 - small
    return [16 + 219 * luma, 128 + 224 * blue / 1.8556, 128 + 224 * red / 1.5748]


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 20), width=st.integers(1, 40), seed=st.integers(0, 99), flat=st.booleans()
)
def test_planes_match_bt709(height: int, width: int, seed: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    size = (1, 1, 3) if flat else (2 * height, 2 * width, 3)
    rgb = np.ascontiguousarray(
        np.broadcast_to(rng.integers(0, 256, size, np.uint8), (2 * height, 2 * width, 3))
    )
    for made, meant in zip(planes(rgb, wider=3), bt709(rgb), strict=True):
        assert np.abs(made[:, :-3] - meant).max() <= 0.51
        assert (made[:, -3:] == EDGE).all()


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_are_grey_and_within_the_range(level: int) -> None:
    y, u, v = planes(np.full((4, 4, 3), level, np.uint8))
    assert (y == (235 if level else 16)).all()
    assert (u == 128).all() and (v == 128).all()


def test_ffmpeg_reads_the_picture_back() -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    rgb = np.stack([4 * x, 5 * y, 255 - 2 * x - 2 * y], axis=2).astype(np.uint8)
    frame = VideoFrame(64, 48, "yuv420p")
    for plane, made in zip(frame.planes, planes(rgb), strict=True):
        lines = np.zeros((plane.height, plane.line_size), np.uint8)
        lines[:, : made.shape[1]] = made
        plane.update(lines)
    back = frame.to_ndarray(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    error = (back.astype(float) - rgb)[2:-2, 2:-2]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 38


@pytest.mark.parametrize(("width", "height"), [(128, 128), (130, 98), (2, 2), (64, 514)])
def test_any_even_size_is_encoded(width: int, height: int) -> None:
    encoder = VideoEncoder(width, height, 25)
    picture = np.zeros((height, width, 3), np.uint8)
    assert encoder.encode(picture, key=True)
    assert encoder.encode(picture, key=False)
