"""Sound into the service's form, its pictures into frames."""

from __future__ import annotations

import av
import numpy as np
from fada_client.decode import FragmentDecoder
from livekit import rtc


class MonoResampler:
    """Sound of any rate and channels to s16le mono at ``sample_rate``; one for each segment."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._input_rate = 0
        self._resampler: rtc.AudioResampler | None = None

    def push(self, frame: rtc.AudioFrame) -> bytes:
        """The sound of ``frame`` as far as it is known; channels are averaged."""
        rest = b""
        if frame.sample_rate != self._input_rate:
            rest = self.flush()
            self._input_rate = frame.sample_rate
            if frame.sample_rate != self._sample_rate:
                self._resampler = rtc.AudioResampler(frame.sample_rate, self._sample_rate)
        pcm = _mixed(frame)
        if self._resampler is None:
            return rest + pcm
        return rest + _joined(self._resampler.push(bytearray(pcm)))

    def flush(self) -> bytes:
        """What is left; afterwards the resampler is as new."""
        resampler, self._resampler, self._input_rate = self._resampler, None, 0
        return b"" if resampler is None else _joined(resampler.flush())


def _mixed(frame: rtc.AudioFrame) -> bytes:
    if frame.num_channels == 1:
        return bytes(frame.data)
    samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
    return bytes(np.rint(samples.mean(axis=1)).astype("<i2"))


def _joined(frames: list[rtc.AudioFrame]) -> bytes:
    return b"".join(bytes(frame.data) for frame in frames)


def video_frames(decoder: FragmentDecoder, fragment: bytes) -> list[rtc.VideoFrame]:
    """All frames of ``fragment``, the next after the last one; blocks for milliseconds."""
    return [_video_frame(picture) for picture in decoder.decode(fragment)]


def _video_frame(picture: av.VideoFrame) -> rtc.VideoFrame:
    planes = picture.reformat(format="yuv420p").to_ndarray()
    return rtc.VideoFrame(picture.width, picture.height, rtc.VideoBufferType.I420, planes.tobytes())
