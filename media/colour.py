"""Convert RGB pictures to the YUV planes of a video encoder.

Numba compiles the kernel on first use and caches the result. Its loops vectorise, so it takes a
fifth of the time of FFmpeg's conversion from packed RGB
(docs/experiments/performance.md).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Plane = NDArray[np.uint8]

# ITU-R BT.709: luma's shares of red, green and blue, and the colour differences' scales.
_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722
_LUMA, _CHROMA = 219.0 / 255.0, 224.0 / 255.0  # limited range
_ONE = 1 << 16


def _fixed(value: float) -> np.int32:
    return np.int32(round(value * _ONE))


_YR, _YG, _YB = (_fixed(_LUMA * share) for share in (_RED, _GREEN, _BLUE))
_UR, _UG = (_fixed(-_CHROMA * share / (2 * (1 - _BLUE))) for share in (_RED, _GREEN))
_VG, _VB = (_fixed(-_CHROMA * share / (2 * (1 - _RED))) for share in (_GREEN, _BLUE))
_HALF = _fixed(_CHROMA / 2)
_Y0 = np.int32(16 * _ONE + _ONE // 2)
_C0 = np.int32(4 * 128 * _ONE + 2 * _ONE)  # of four pixels' sum


@njit(cache=True, nogil=True)
def to_yuv420(rgb, y, u, v):  # type: ignore[no-untyped-def]
    """Write ``rgb`` (H, W, 3) uint8, H and W even, to the planes ``y``, ``u`` and ``v``.

    Planes are (H, ≥ W) and twice (H / 2, ≥ W / 2); columns beyond the picture's are not written. A
    chroma sample is that of the mean of its four pixels.
    """
    height, width = rgb.shape[0], rgb.shape[1]
    half = width // 2
    flat = rgb.reshape(height, 3 * width)
    # One pair of rows, channel by channel, so that loops run over sixteen pixels at a time.
    red, green, blue = (
        np.empty((2, width), np.int32),
        np.empty((2, width), np.int32),
        np.empty((2, width), np.int32),
    )
    r0, r1, g0, g1, b0, b1 = red[0], red[1], green[0], green[1], blue[0], blue[1]
    for pair in range(height // 2):
        for k in range(2):
            row, luma = flat[2 * pair + k], y[2 * pair + k]
            r, g, b = red[k], green[k], blue[k]
            for x in range(width):
                r[x] = row[3 * x]
                g[x] = row[3 * x + 1]
                b[x] = row[3 * x + 2]
            for x in range(width):
                luma[x] = np.uint8((_YR * r[x] + _YG * g[x] + _YB * b[x] + _Y0) >> 16)
        to_u, to_v = u[pair], v[pair]
        for x in range(half):
            i, j = 2 * x, 2 * x + 1
            r4 = r0[i] + r0[j] + r1[i] + r1[j]
            g4 = g0[i] + g0[j] + g1[i] + g1[j]
            b4 = b0[i] + b0[j] + b1[i] + b1[j]
            to_u[x] = np.uint8((_UR * r4 + _UG * g4 + _HALF * b4 + _C0) >> 18)
            to_v[x] = np.uint8((_HALF * r4 + _VG * g4 + _VB * b4 + _C0) >> 18)
