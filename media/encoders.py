"""H.264 and AAC encoders: a picture or a block of sound in, the bytes of MP4 samples out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from media.colour import Plane, to_yuv420
from media.label import LabelText, make_label

SAMPLE_RATE = 48_000
AAC_FRAME = 1024  # samples
_BIT_RATE = 96_000
_BT709 = 1


class H264Encoder:
    """Encodes pictures of one even size without delay: one in, one out.

    It uses x264's fastest preset: a talking portrait is a still with small motion, where the search
    of slower presets finds little (`bench/stage_times.py`). A ``label`` is drawn on every picture.
    """

    def __init__(
        self, width: int, height: int, fps: int, *, label: LabelText | None = None
    ) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise ValueError(f"width and height must be even and positive, got {width}x{height}")
        self._size = (height, width, 3)
        self._codec = _open_h264(width, height, fps)
        self.sps, self.pps = _parameter_sets(self._codec.extradata)
        # One frame for all pictures: the encoder copies it.
        self._frame = VideoFrame(width, height, "yuv420p")
        self._planes = tuple(_plane(self._frame, i) for i in range(3))
        self._label = None if label is None else make_label(label, width, height)
        self._count = 0

    def encode(self, rgb: NDArray[np.uint8], *, key: bool) -> bytes:
        """Encode ``rgb`` (H, W, 3), which is copied, as one MP4 sample; ``key``: as a keyframe.

        Raises ``ValueError`` for another shape.
        """
        if rgb.shape != self._size:
            raise ValueError(f"a frame must have shape {self._size}, got {rgb.shape}")
        to_yuv420(np.ascontiguousarray(rgb), *self._planes)
        if self._label is not None:
            self._label.draw(*self._planes)
        self._frame.pts = self._count
        self._frame.pict_type = PictureType.I if key else PictureType.NONE
        self._count += 1
        packets = self._codec.encode(self._frame)
        if len(packets) != 1:  # zerolatency: one in, one out
            raise RuntimeError(f"the H.264 encoder gave {len(packets)} packets for one frame")
        return _length_prefixed(bytes(packets[0]))


class AACEncoder:
    """Encodes mono sound at `SAMPLE_RATE`, in blocks of `AAC_FRAME` samples.

    The encoder's first packet, which precedes time zero and only primes a decoder, is dropped. An
    encoder that continues another's sound starts some blocks earlier, at sample ``first``, and
    drops packets before sample ``wanted``.
    """

    def __init__(self, first: int = 0, wanted: int = 0) -> None:
        self._codec = _open_aac()
        self._sent, self._wanted = first, wanted

    @property
    def bit_rate(self) -> int:
        """Bits per second."""
        return self._codec.bit_rate or 0

    @property
    def config(self) -> bytes:
        """The AudioSpecificConfig."""
        return self._codec.extradata or b""

    def encode(self, pcm: NDArray[np.float32]) -> list[bytes]:
        """Encode ``pcm`` (N,), N a multiple of `AAC_FRAME`, to the MP4 samples that are ready."""
        packets: list[bytes] = []
        for start in range(0, len(pcm), AAC_FRAME):
            block = np.clip(pcm[None, start : start + AAC_FRAME], -1.0, 1.0)
            frame = AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = self._sent
            self._sent += AAC_FRAME
            packets += self._sounding(self._codec.encode(frame))
        return packets

    def finish(self) -> list[bytes]:
        """The last MP4 samples; the encoder cannot be used afterwards."""
        return self._sounding(self._codec.encode(None))

    def _sounding(self, packets: list[Packet[AudioStream]]) -> list[bytes]:
        return [bytes(p) for p in packets if p.pts is not None and p.pts >= self._wanted]


def _plane(frame: VideoFrame, index: int) -> Plane:
    """The memory of one plane, (H, bytes per row)."""
    plane = frame.planes[index]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]


def _open_h264(width: int, height: int, fps: int) -> VideoCodecContext:
    video = VideoCodecContext.create("libx264", "w")
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    video.time_base, video.framerate = Fraction(1, fps), Fraction(fps)
    video.color_primaries = video.color_trc = video.colorspace = _BT709
    video.color_range = ColorRange.MPEG.value
    video.thread_count = 1  # sessions run side by side: one thread each
    video.flags |= Flags.global_header
    video.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "crf": "20",
        "forced-idr": "1",
        "x264-params": "scenecut=0:keyint=infinite",
    }
    video.open()
    return video


def _open_aac() -> AudioCodecContext:
    audio = AudioCodecContext.create("aac", "w")
    audio.sample_rate, audio.layout, audio.format = SAMPLE_RATE, "mono", "fltp"
    audio.bit_rate = _BIT_RATE
    audio.time_base = Fraction(1, SAMPLE_RATE)
    audio.flags |= Flags.global_header
    # The default coder takes nearly as long as encoding the pictures, and at this rate it leaves
    # more noise: 23 dB below the sound of `docs/examples` instead of 41.
    audio.options = {"aac_coder": "fast"}
    audio.open()
    return audio


def _nal_units(annex_b: bytes) -> list[bytes]:
    # No NAL unit contains a start code or ends in a zero byte (H.264 annex B, 7.4.1).
    return [unit.rstrip(b"\0") for unit in annex_b.split(b"\0\0\1")[1:]]


def _parameter_sets(extradata: bytes | None) -> tuple[bytes, bytes]:
    units = {unit[0] & 0x1F: unit for unit in _nal_units(extradata or b"")}
    if 7 not in units or 8 not in units:
        raise RuntimeError(f"the H.264 encoder gave no SPS and PPS, only units {sorted(units)}")
    return units[7], units[8]


def _length_prefixed(annex_b: bytes) -> bytes:
    units = _nal_units(annex_b)
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
