"""Generates small pictures and sounds."""

from __future__ import annotations

import io

import av
import numpy as np
import soundfile
from PIL import Image

_CODECS = {"m4a": ("mp4", "aac"), "webm": ("webm", "libopus")}

# See fake_pipeline.
GREY, NO_FACE, COVERED, POISON = (90, 140, 90), (255, 0, 0), (0, 255, 0), (0, 0, 255)
GRAINY = (255, 0, 255)


def picture(
    colour: tuple[int, int, int] = GREY, size: tuple[int, int] = (64, 96), kind: str = "PNG"
) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def noise_picture(side: int) -> bytes:
    """A PNG that does not compress: about 3 bytes a pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def sound(seconds: float, *, silent: bool = False, rate: int = 16_000, kind: str = "FLAC") -> bytes:
    count = round(seconds * rate)
    level = 0 if silent else 8000
    pcm = np.random.default_rng(0).integers(-level, level + 1, count).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=kind)
    return file.getvalue()


def overstated_sound(seconds: float, factor: int) -> bytes:
    """A WAV whose header states ``factor`` times its length."""
    blob = bytearray(sound(seconds, kind="WAV"))
    blob[28:32] = (32_000 // factor).to_bytes(4, "little")  # bytes a second
    return bytes(blob)


def encoded_sound(seconds: float, ending: str, rate: int = 48_000) -> bytes:
    """Noise as a file with that ending: wav, flac, mp3, ogg, m4a or webm."""
    if ending not in _CODECS:
        return sound(seconds, rate=rate, kind=ending.upper())
    container, codec = _CODECS[ending]
    pcm = np.random.default_rng(0).uniform(-0.2, 0.2, round(seconds * rate)).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    return file.getvalue()
