"""Generates small videos with sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE = 48_000
CLICK_S = 1.0


def write_video(
    path: Path,
    picture: NDArray[np.uint8],
    rate: int,
    *,
    seconds: float,
    sound_starts_s: float | None = 0.0,
    aspect: Fraction | None = None,
) -> Path:
    """A still of ``picture`` with a tone that begins `CLICK_S` after the first frame."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        video.height, video.width = picture.shape[:2]
        video.pix_fmt = "yuv420p"
        if aspect is not None:
            video.sample_aspect_ratio = aspect
        audio = None
        if sound_starts_s is not None:
            audio = container.add_stream("aac", rate=RATE, layout="mono")
        for i in range(round(rate * seconds)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and sound_starts_s is not None:
            t = sound_starts_s + np.arange(round((seconds - sound_starts_s) * RATE)) / RATE
            tone = 0.5 * np.sin(2 * np.pi * 440 * t) * (t >= CLICK_S)
            for at in range(0, len(tone), 1024):
                block = av.AudioFrame.from_ndarray(
                    tone[None, at : at + 1024].astype(np.float32), format="fltp", layout="mono"
                )
                block.sample_rate = RATE
                block.pts = round(sound_starts_s * RATE) + at
                block.time_base = Fraction(1, RATE)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path
