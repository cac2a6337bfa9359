"""Video and AAC encoders: a picture or a block of sound in, the bytes of MP4 samples out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, cast

import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from media import boxes
from media.colour import Plane, to_yuv420
from media.label import LabelText, make_label

SAMPLE_RATE = 48_000
AAC_FRAME = 1024  # samples
_BIT_RATE = 96_000
_BT709 = 1
_SPS, _PPS = 7, 8  # types of NAL units
_TEMPORAL_DELIMITER = b"\x12\x00"  # starts each of AV1's packets, and is not stored in MP4
_NO_KEYFRAMES = 1 << 24
_SMALL = 128  # pixels: no encoder takes less
_FRAMES_TIMED = 25

log = logging.getLogger("fada.media")


@dataclass(frozen=True)
class Encoding:
    """How frames become video: by which of `ENCODERS`, with what ``label`` drawn on each."""

    encoder: str = "x264"
    label: LabelText | None = None


DEFAULT_ENCODING = Encoding()


@dataclass(frozen=True)
class _Library:
    """One of FFmpeg's encoders, with options for one picture out for each one in."""

    name: str
    format: Literal["h264", "vp9", "av1"]
    options: dict[str, str]
    bit_rate: int = 0  # a second; 0: by quality
    fallback: str = ""  # where it does not open: a card's encoder opens for some sessions only


# A talking portrait is a still with small motion, where the search of x264's slower presets finds
# little (`bench/stage_times.py`); the others have options for about the same look.
_LIBRARIES = {
    "x264": _Library(
        "libx264",
        "h264",
        {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "crf": "20",
            "forced-idr": "1",
            "x264-params": "scenecut=0:keyint=infinite",
        },
    ),
    "openh264": _Library("libopenh264", "h264", {"rc_mode": "quality"}, bit_rate=1_500_000),
    "nvenc": _Library(
        "h264_nvenc",
        "h264",
        {
            "preset": "p2",
            "tune": "ull",
            "rc": "constqp",
            "qp": "23",
            "delay": "0",
            "zerolatency": "1",
            "forced-idr": "1",
            "bf": "0",
        },
        fallback="x264",
    ),
    "vp9": _Library(
        "libvpx-vp9",
        "vp9",
        {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "24", "b": "0"},
    ),
    "av1": _Library(
        "libsvtav1",
        "av1",
        {"preset": "12", "crf": "30", "svtav1-params": "pred-struct=1:lookahead=0:lp=1"},
    ),
}
ENCODERS = tuple(_LIBRARIES)


class VideoEncoder:
    """Encodes pictures of one even size without delay: one in, one out.

    ``encoder`` is the one of `ENCODERS` whose ``sample_description`` the video has: the
    ``encoding``'s, or its fallback. ``continues``: the video was begun with the encoder that
    ``encoding`` names. Where that one does not open, its fallback goes on under the same
    description, which holds the parameter sets of both.
    Raises ``ValueError`` for an odd size, or an encoder that is not there.
    """

    def __init__(
        self,
        width: int,
        height: int,
        fps: int,
        encoding: Encoding = DEFAULT_ENCODING,
        *,
        continues: bool = False,
    ) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise ValueError(f"width and height must be even and positive, got {width}x{height}")
        self._size = (height, width, 3)
        self.encoder = encoding.encoder
        library = _LIBRARIES[self.encoder]
        try:
            self._codec = _open_video(library, width, height, fps=fps)
        except ValueError as error:
            if not library.fallback:
                raise
            log.warning("%s; %s encodes instead", error, library.fallback)
            if continues:
                library = _with_other_set_ids(_LIBRARIES[library.fallback])
            else:
                self.encoder = library.fallback
                library = _LIBRARIES[self.encoder]
            self._codec = _open_video(library, width, height, fps=fps)
        self.format = library.format
        self.sample_description = _sample_description(library, self._codec, fps)
        # One frame for all pictures: the encoder copies it.
        self._frame = VideoFrame(width, height, "yuv420p")
        self._planes = tuple(_plane(self._frame, i) for i in range(3))
        label = encoding.label
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
        if len(packets) != 1:
            raise RuntimeError(f"the video encoder gave {len(packets)} packets for one frame")
        data = bytes(packets[0])
        if self.format == "h264":
            return _length_prefixed(data)
        return data.removeprefix(_TEMPORAL_DELIMITER) if self.format == "av1" else data


def check_encoder(name: str) -> None:
    """Raises ``ValueError`` where the encoder ``name``, of `ENCODERS`, does not work."""
    _open_video(_LIBRARIES[name], _SMALL, _SMALL, fps=25)  # raises where a fallback would not
    encoder = VideoEncoder(_SMALL, _SMALL, 25, Encoding(name))
    encoder.encode(np.zeros((_SMALL, _SMALL, 3), np.uint8), key=True)


def fastest_encoder() -> str:
    """NVENC where it works and takes less of the processor's time for a frame than x264, else x264.

    Blocks for up to half a second where there is a card.
    """
    try:
        check_encoder("nvenc")
        software, card = _seconds_per_frame("x264"), _seconds_per_frame("nvenc")
    except (ValueError, FFmpegError):
        return "x264"
    log.info("a frame takes x264 %.2f ms of CPU, NVENC %.2f ms", software * 1000, card * 1000)
    return "nvenc" if card < software else "x264"


def _seconds_per_frame(name: str) -> float:
    """CPU seconds for one frame of a picture that moves a little, at 512 pixels."""
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    picture = np.ascontiguousarray(picture.repeat(8, axis=0).repeat(8, axis=1))
    encoder = VideoEncoder(512, 512, 25, Encoding(name))
    encoder.encode(picture, key=True)
    began_s = time.process_time()
    for shift in range(_FRAMES_TIMED):
        encoder.encode(np.roll(picture, shift, axis=1), key=False)
    return (time.process_time() - began_s) / _FRAMES_TIMED


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


def _open_video(library: _Library, width: int, height: int, *, fps: int) -> VideoCodecContext:
    try:
        video = cast(VideoCodecContext, VideoCodecContext.create(library.name, "w"))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.time_base, video.framerate = Fraction(1, fps), Fraction(fps)
        video.color_primaries = video.color_trc = video.colorspace = _BT709
        video.color_range = ColorRange.MPEG.value
        video.thread_count = 1  # sessions run side by side: one thread each
        video.gop_size = _NO_KEYFRAMES  # but those that are asked for
        video.flags |= Flags.global_header
        if library.bit_rate:
            video.bit_rate = library.bit_rate
        video.options = library.options
        video.open()
    except (FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"the encoder {library.name} does not work here: {why}") from error
    return video


def _with_other_set_ids(library: _Library) -> _Library:
    """x264 with other numbers for its parameter sets, which then stand beside another encoder's."""
    options = dict(library.options)
    options["x264-params"] += ":sps-id=1"
    return replace(library, options=options)


def _sample_description(
    library: _Library, codec: VideoCodecContext, fps: int
) -> boxes.SampleDescription:
    if library.format == "h264":
        sets = [_parameter_sets(codec.extradata)]
        if library.fallback:
            second = _with_other_set_ids(_LIBRARIES[library.fallback])
            opened = _open_video(second, codec.width, codec.height, fps=fps)
            sets.append(_parameter_sets(opened.extradata))
        return boxes.avc_description(sets)
    if library.format == "vp9":
        return boxes.vp9_description(codec.width, codec.height)
    return boxes.av1_description(codec.extradata or b"")


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
    if _SPS not in units or _PPS not in units:
        raise RuntimeError(f"the H.264 encoder gave no SPS and PPS, only units {sorted(units)}")
    return units[_SPS], units[_PPS]


def _length_prefixed(annex_b: bytes) -> bytes:
    """Without parameter sets, which are in the sample description."""
    units = [unit for unit in _nal_units(annex_b) if unit[0] & 0x1F not in (_SPS, _PPS)]
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
