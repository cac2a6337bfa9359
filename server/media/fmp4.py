"""Frames and sound in, a fragmented MP4 out, fragment by fragment.

Knows: H.264 and AAC encoding (PyAV's codecs) and which sample belongs to which fragment. The
boxes are laid out in `server.media.boxes`, not by libavformat: its muxer holds a fragment back
until the next one's first frame, and has no init segment before the first data. Does not know
sessions, windows or sockets.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from server.media import boxes

AUDIO_CODEC = "mp4a.40.2"
SAMPLE_RATE = 48_000
_AAC_FRAME = 1024
_TICKS_PER_FRAME = 512
_BT709 = 1


class FragmentedMP4Muxer:
    """Encodes one video; each `add` gives back one whole fragment that starts with a keyframe.

    ``width`` and ``height`` are even pixels; sound is mono at `SAMPLE_RATE`, whatever it came
    from, for an AAC frame then is 21 ms: the sound of a fragment may end up to two of them
    before its picture does (the encoder's own delay), and catches up with the next one.

    The encoder's first packet, which only primes a decoder, is left out: so both tracks start
    at zero in every player, with no edit list, and the length is the sound's; the price is that
    the first 21 ms fade in.
    """

    def __init__(self, width: int, height: int, fps: int) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise ValueError(f"width and height must be even and positive, got {width}x{height}")
        self._size = (height, width, 3)
        self._video = _open_h264(width, height, fps)
        self._audio = _open_aac()
        self._to_yuv = VideoReformatter()
        self._sps, pps = _parameter_sets(self._video.extradata)
        self._sequence = 0
        self._frames = 0
        self._pcm: NDArray[np.float32] = np.zeros(0, np.float32)
        self._samples_in = 0
        self._samples_sent = 0  # samples handed to the encoder, the last frame's padding included
        self._samples_out = 0
        self._init = boxes.init_segment(
            boxes.VideoTrack(width, height, fps * _TICKS_PER_FRAME, self._sps, pps),
            boxes.AudioTrack(SAMPLE_RATE, self._audio.bit_rate or 0, self._audio.extradata or b""),
        )

    @property
    def codecs(self) -> str:
        """The ``codecs`` parameter of the MIME type, video first."""
        return f"{boxes.codec_string(self._sps)},{AUDIO_CODEC}"

    def init_segment(self) -> bytes:
        """``ftyp`` and ``moov``; to be sent before the first fragment."""
        return self._init

    def add(self, frames: Iterable[NDArray[np.uint8]], pcm: NDArray[np.float32]) -> bytes:
        """Encode ``frames`` (H, W, 3) RGB with ``pcm`` (N,), their sound, into one fragment.

        A frame is done with when the next is asked for, so the caller may reuse its memory.
        """
        start = self._frames
        video = [self._encode_frame(frame, key=self._frames == start) for frame in frames]
        if not video:
            raise ValueError("a fragment needs at least one frame, got 0")
        runs = [
            boxes.Run(
                boxes.VIDEO_TRACK,
                start * _TICKS_PER_FRAME,
                video,
                [_TICKS_PER_FRAME] * len(video),
            )
        ]
        self._pcm = np.concatenate([self._pcm, pcm])
        self._samples_in += len(pcm)
        whole = len(self._pcm) // _AAC_FRAME * _AAC_FRAME
        packets = self._encode_sound(self._pcm[:whole])
        self._pcm = self._pcm[whole:]
        return self._fragment(runs, packets, [_AAC_FRAME] * len(packets))

    def close(self) -> bytes:
        """The rest of the sound, in a last fragment; empty when there is none."""
        packets: list[bytes] = []
        if len(self._pcm):
            packets += self._encode_sound(np.pad(self._pcm, (0, _AAC_FRAME - len(self._pcm))))
        packets += _sounding(self._audio.encode(None))
        durations = []
        left = self._samples_in - self._samples_out
        for _ in packets:  # the last packet ends where the sound ends, not where its padding does
            durations.append(max(0, min(_AAC_FRAME, left)))
            left -= _AAC_FRAME
        if not packets:
            return b""
        return self._fragment([], packets, durations)

    def _fragment(self, runs: list[boxes.Run], packets: list[bytes], durations: list[int]) -> bytes:
        if packets:
            runs.append(boxes.Run(boxes.AUDIO_TRACK, self._samples_out, packets, durations))
            self._samples_out += sum(durations)
        self._sequence += 1
        return boxes.fragment(self._sequence, runs)

    def _encode_frame(self, rgb: NDArray[np.uint8], *, key: bool) -> bytes:
        if rgb.shape != self._size:
            raise ValueError(f"a frame must have shape {self._size}, got {rgb.shape}")
        picture = VideoFrame.from_numpy_buffer(rgb, format="rgb24")
        frame = self._to_yuv.reformat(
            picture,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts = self._frames
        frame.pict_type = PictureType.I if key else PictureType.NONE
        self._frames += 1
        packets = self._video.encode(frame)
        if len(packets) != 1:  # zerolatency: one in, one out
            raise RuntimeError(f"the H.264 encoder gave {len(packets)} packets for one frame")
        return _length_prefixed(bytes(packets[0]))

    def _encode_sound(self, pcm: NDArray[np.float32]) -> list[bytes]:
        packets: list[bytes] = []
        for start in range(0, len(pcm), _AAC_FRAME):
            block = np.clip(pcm[None, start : start + _AAC_FRAME], -1.0, 1.0)
            frame = AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = self._samples_sent
            self._samples_sent += _AAC_FRAME
            packets += _sounding(self._audio.encode(frame))
        return packets


def _open_h264(width: int, height: int, fps: int) -> VideoCodecContext:
    video = VideoCodecContext.create("libx264", "w")
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    video.time_base, video.framerate = Fraction(1, fps), Fraction(fps)
    video.color_primaries = video.color_trc = video.colorspace = _BT709
    video.color_range = ColorRange.MPEG.value
    video.thread_count = 1  # sessions run side by side: one thread each
    video.flags |= Flags.global_header
    video.options = {
        "preset": "superfast",
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
    audio.bit_rate = 96_000
    audio.time_base = Fraction(1, SAMPLE_RATE)
    audio.flags |= Flags.global_header
    audio.open()
    return audio


def _sounding(packets: list[Packet[AudioStream]]) -> list[bytes]:
    """Without the priming, whose time lies before zero."""
    return [bytes(packet) for packet in packets if packet.pts is not None and packet.pts >= 0]


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
