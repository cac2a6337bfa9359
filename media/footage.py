"""Read a video of a speaker: its pictures with their times, its sound at 16 kHz.

Both streams are decoded incrementally, each in its own pass, so memory does not grow with length.
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

# The mesh network takes 256 pixels: larger pictures only cost time.
MAX_SIDE = 1280
# Pictures closer than this are skipped, i.e. above about 30 frames a second.
_MIN_STEP_S = 0.03
_MAX_DRIFT_S = 0.05  # sound whose timestamps jump by more is realigned


@dataclass(frozen=True)
class Footage:
    """A video file with sound. ``start_s``: timestamp of its first picture, where time starts.

    ``duration_s`` is the container's, ``None`` if it states none.
    """

    path: Path
    start_s: float
    duration_s: float | None

    def pictures(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """(seconds, (H, W, 3) RGB), upright, at most `MAX_SIDE` pixels long."""
        last = -np.inf
        with av.open(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                time_s = (frame.time or 0.0) - self.start_s
                if time_s - last >= _MIN_STEP_S:
                    last = time_s
                    yield time_s, _upright(frame, float(stream.sample_aspect_ratio or 1))

    def sound(self) -> Iterator[Floats]:
        """Blocks of mono samples at 16 kHz, starting at the first picture."""
        return sound_of(self.path, self.start_s)


def open_footage(path: Path) -> Footage:
    """Open ``path``. Raises ``ValueError`` if it is no video or has no sound."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ValueError(f"{path} is not a video: it holds no pictures")
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound: training needs it")
            duration = container.duration / av.time_base if container.duration else None
            for frame in container.decode(video=0):
                return Footage(path, frame.time or 0.0, duration)
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from error
    raise ValueError(f"{path} is not a video: not one picture could be decoded")


def sound_of(path: Path, start_s: float = 0.0) -> Iterator[Floats]:
    """Mono blocks at 16 kHz of a media file from ``start_s`` on, with silence in gaps.

    Raises ``ValueError`` if it has no sound.
    """
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
        if not written or abs(ahead) > _MAX_DRIFT_S * rate:
            mono = np.pad(mono, (ahead, 0)) if ahead > 0 else mono[-ahead:]
        written += len(mono)
        yield resample.resample_chunk(np.ascontiguousarray(mono, np.float32))
    yield resample.resample_chunk(np.zeros(0, np.float32), last=True)


def _upright(frame: av.VideoFrame, aspect: float) -> NDArray[np.uint8]:
    width, height = frame.width * aspect, float(frame.height)
    shrink = min(1.0, MAX_SIDE / max(width, height))
    size = {"width": max(1, round(width * shrink)), "height": max(1, round(height * shrink))}
    picture = frame.reformat(**size, format="rgb24").to_ndarray()
    # Both FFmpeg and NumPy count rotations counter-clockwise.
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
