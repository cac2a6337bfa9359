"""Decodes videos with FFmpeg, for assertions."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

FLASH = 128  # brighter than this on average


@dataclass(frozen=True)
class Probe:
    """``pictures`` (T, 3) is each frame's mean colour; ``sound`` (N,) mono at ``rate``."""

    width: int
    height: int
    times_s: list[float]
    keyframes: list[bool]
    pictures: NDArray[np.float64]
    sound: NDArray[np.float32]
    sound_start_s: float
    sound_s: float
    rate: int

    @property
    def video_s(self) -> float:
        return len(self.times_s) / 25


def probe(blob: bytes) -> Probe:
    """Decode all of an MP4."""
    with av.open(io.BytesIO(blob)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        times, keys, pictures, sound, starts, length = [], [], [], [], [], 0.0
        for packet in container.demux(video, audio):
            if packet.stream is audio and packet.duration and packet.pts is not None:
                length += float(packet.duration * packet.time_base)
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    times.append(frame.time)
                    keys.append(bool(frame.key_frame))
                    pictures.append(frame.to_ndarray(format="rgb24").mean(axis=(0, 1)))
                elif isinstance(frame, av.AudioFrame):
                    starts.append(frame.time)
                    sound.append(frame.to_ndarray()[0])
        return Probe(
            video.width,
            video.height,
            times,
            keys,
            np.array(pictures),
            np.concatenate(sound),
            starts[0],
            length,
            audio.rate,
        )


def pictures_of(blob: bytes) -> NDArray[np.uint8]:
    """(T, H, W, 3) RGB: every frame of an MP4."""
    with av.open(io.BytesIO(blob)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def boxes(blob: bytes) -> list[tuple[str, bytes]]:
    """The top-level boxes in order; fails if anything else is there."""
    found, at = [], 0
    while at < len(blob):
        size = int.from_bytes(blob[at : at + 4], "big")
        found.append((blob[at + 4 : at + 8].decode("ascii"), blob[at : at + size]))
        at += size
    assert at == len(blob)
    return found
