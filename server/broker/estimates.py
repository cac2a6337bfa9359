"""How many bytes a video will take, before it is made."""

from __future__ import annotations

import struct

from server.api.protocol import AnimationOptions
from server.motion import BYTES_PER_S

# Measured with x264: up to 0.6 kB a second for each pixel of the long side (`fada animate`, 512 and
# 1024 pixels, the issue of a 30-minute video). Sound is a part of it.
_BYTES_PER_S_AND_PIXEL = 700
_SLOWEST_BYTES_PER_S = 4_000  # speech of 32 kbit/s; what is slower is corrected by the worker
_WAV_RATE = slice(28, 32)
_FLAC_RATES = slice(18, 26)


def output_bytes(duration_s: float, options: AnimationOptions) -> int:
    """Of a video or its motion, rather too many than too few."""
    if options.output == "motion":
        return round(BYTES_PER_S * (duration_s + 1.0))
    return round(_BYTES_PER_S_AND_PIXEL * options.size * duration_s)


def speech_s(head: bytes, size: int) -> float | None:
    """The length that the first bytes of a sound file of ``size`` bytes state, if any do.

    Reads WAV and FLAC, whose headers are often right; only the worker can know.
    """
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt " and len(head) >= _WAV_RATE.stop:
        (bytes_per_s,) = struct.unpack("<I", head[_WAV_RATE])
        return size / bytes_per_s if bytes_per_s else None
    if head[:4] == b"fLaC" and len(head) >= _FLAC_RATES.stop:
        (fields,) = struct.unpack(">Q", head[_FLAC_RATES])
        rate, samples = fields >> 44, fields & ((1 << 36) - 1)
        return samples / rate if rate and samples else None
    return None


def longest_speech_s(size: int) -> float:
    """How long a sound file of ``size`` bytes may last, unless it is compressed a lot."""
    return size / _SLOWEST_BYTES_PER_S
