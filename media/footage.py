"""A video file of somebody who speaks: its pictures with their times, its sound at 16 kHz.

Both streams are decoded as they are read, each in a pass of its own, so a long video needs no more
memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from model.types import SAMPLE_RATE, Floats

# The mesh network looks at 256 pixels: a larger picture adds time only.
LONGEST_SIDE = 1280
# Of video faster than about 30 frames a second some pictures are passed over.
_LEAST_STEP_S = 0.03
_LARGEST_SLIP_S = 0.05  # a sound whose times jump by more is moved to its place


@dataclass(frozen=True)
class Footage:
    """A video file with sound. ``start_s``: when its first picture is shown, the zero of time.

    ``duration_s`` is what the container says, ``None`` when it says nothing.
    """

    path: Path
    start_s: float
    duration_s: float | None

    def pictures(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """(seconds, (H, W, 3) RGB), upright, at most `LONGEST_SIDE` pixels long."""
        last = -np.inf
        with av.open(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                time_s = (frame.time or 0.0) - self.start_s
                if time_s - last >= _LEAST_STEP_S:
                    last = time_s
                    yield time_s, _upright(frame, float(stream.sample_aspect_ratio or 1))

    def sound(self) -> Iterator[Floats]:
        """Mono samples at 16 kHz, the first of them at the first picture."""
        return sound_of(self.path, self.start_s)


def open_footage(path: Path) -> Footage:
    """Looks into ``path``. Raises ``ValueError`` when it is no video or has no sound."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ValueError(f"{path} is not a video: it holds no pictures")
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound: motion is learned from what is heard")
            duration = container.duration / av.time_base if container.duration else None
            for frame in container.decode(video=0):
                return Footage(path, frame.time or 0.0, duration)
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from error
    raise ValueError(f"{path} is not a video: not one picture could be decoded")


def sound_of(path: Path, start_s: float = 0.0) -> Iterator[Floats]:
    """The sound of any media file from ``start_s`` on: mono blocks at 16 kHz, silence where the
    stream has none. Raises ``ValueError`` when there is no sound in it."""
    try:
        with av.open(path) as container:
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound")
            yield from _placed(container, start_s)
    except av.FFmpegError as error:
        raise ValueError(f"the sound of {path} cannot be read: {error.strerror}") from error


def _placed(container: av.container.InputContainer, start_s: float) -> Iterator[Floats]:
    stream = container.streams.audio[0]
    rate = stream.rate
    mix = AudioResampler(format="flt", layout="mono", rate=rate)
    resample = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    written = 0
    for frame in container.decode(stream):
        place = written if frame.time is None else round((frame.time - start_s) * rate)
        mono = np.concatenate([part.to_ndarray()[0] for part in mix.resample(frame)])
        ahead = place - written
        if not written or abs(ahead) > _LARGEST_SLIP_S * rate:
            mono = np.pad(mono, (ahead, 0)) if ahead > 0 else mono[-ahead:]
        written += len(mono)
        yield resample.resample_chunk(np.ascontiguousarray(mono, np.float32))
    yield resample.resample_chunk(np.zeros(0, np.float32), last=True)


def _upright(frame: av.VideoFrame, aspect: float) -> NDArray[np.uint8]:
    width, height = frame.width * aspect, float(frame.height)
    shrink = min(1.0, LONGEST_SIDE / max(width, height))
    size = {"width": max(1, round(width * shrink)), "height": max(1, round(height * shrink))}
    picture = frame.reformat(**size, format="rgb24").to_ndarray()
    # counted counter-clockwise, as NumPy turns
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
