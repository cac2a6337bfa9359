"""Fragments of a session's MP4 as packets for WebRTC.

H.264 is sent as the worker encoded it: a fragment in six begins with a keyframe, so a picture that
loss has damaged is whole again within a second. A stream is encoded again where the client takes
VP8 only, where the worker encodes something else, and where the client receives less than the
stream has.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, cast

from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.codec.context import CodecContext, Flags
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from media import boxes, marks
from server.webrtc.wire import SAMPLE_RATE

Codec = Literal["H264", "VP8"]

_DECODERS = {b"avc1": "h264", b"vp09": "vp9", b"av01": "av1"}
_BASELINE = 66  # profile_idc: all that WebRTC's H.264 promises to decode
_START_CODE = b"\0\0\0\1"
_BT709, _BT601 = Colorspace.ITU709, Colorspace.ITU601
_OPUS_SAMPLES, _OPUS_BYTES = 960, 1920
_OPUS_BIT_RATE = 48_000
FIRST_BIT_RATE = 1_000_000
_LEAST_BIT_RATE, _MOST_BIT_RATE = 100_000, 2_500_000
_HALF_SIZE_BELOW = 250_000  # bits a second: fewer and sharper pixels
_REOPEN = 0.15  # an encoder's rate is changed by a new encoder, and so with a keyframe


class Sound:
    """PCM in, s16le; Opus out; both mono at `SAMPLE_RATE`.

    A frame of video lasts two packets, so none waits for the next fragment.
    """

    def __init__(self) -> None:
        self._encoder = AudioCodecContext.create("libopus", "w")
        self._encoder.sample_rate, self._encoder.format = SAMPLE_RATE, "s16"
        self._encoder.layout, self._encoder.bit_rate = "mono", _OPUS_BIT_RATE
        # Each packet holds a coarse copy of the one before, for a receiver that has lost it.
        self._encoder.options = {"application": "voip", "fec": "1", "packet_loss": "5"}

    def packets(self, pcm: bytes, at_s: Fraction) -> Iterator[Packet[Any]]:
        """The packets of a fragment's sound, which begins at ``at_s``."""
        for start in range(0, len(pcm), _OPUS_BYTES):
            block = AudioFrame("s16", "mono", _OPUS_SAMPLES)
            block.planes[0].update(pcm[start : start + _OPUS_BYTES].ljust(_OPUS_BYTES, b"\0"))
            block.sample_rate, block.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            block.pts = round(at_s * SAMPLE_RATE) + start // 2
            yield from self._encoder.encode(block)


class Picture:
    """The video track in the ``codec`` that the client takes; see this module."""

    def __init__(self, description: boxes.Description, codec: Codec) -> None:
        self._codec: Codec = codec
        self._timescale = description.timescale
        self._kind = description.video
        self._sets = b""
        self._extradata = description.configuration
        self.can_copy = False
        if self._kind == b"avc1":
            units = boxes.parameter_sets(description.configuration)
            self._sets = b"".join(_START_CODE + unit for unit in units)
            self.can_copy = codec == "H264" and description.configuration[1] == _BASELINE
        self.wants_copy = self.can_copy  # from the next keyframe on
        self.bit_rate = FIRST_BIT_RATE  # of what is encoded again, a second
        self._copying: bool | None = None  # before the first keyframe
        self._decoder: VideoCodecContext | None = None
        self._encoder: VideoCodecContext | None = None
        self._key_wanted = False
        self._colours = VideoReformatter()

    def request_keyframe(self) -> None:
        """The client has lost a picture. What is copied has a keyframe every second anyway."""
        self._key_wanted = True

    def packets(self, run: boxes.Run) -> Iterator[Packet[Any]]:
        """The packets of a run of video samples; none before the first keyframe.

        Copying and encoding follow one another at keyframes only.
        """
        if run.sync and self.wants_copy != self._copying:
            self._copying = self.wants_copy
            self._decoder = None if self._copying else self._new_decoder()
            self._encoder = None
        at = run.decode_time
        for index, sample in enumerate(run.samples):
            key = run.sync and index == 0
            if self._copying:
                yield self._packet((self._sets if key else b"") + _annex_b(sample), at)
            elif self._decoder is not None:
                yield from self._encoded_again(sample, at)
            at += run.durations[index]

    def _packet(self, data: bytes, at: int) -> Packet[Any]:
        packet = Packet(data)
        packet.pts, packet.time_base = at, Fraction(1, self._timescale)
        return packet

    def _new_decoder(self) -> VideoCodecContext:
        decoder = cast(VideoCodecContext, CodecContext.create(_DECODERS[self._kind], "r"))
        if self._kind != b"vp09":
            decoder.extradata = self._extradata
        decoder.thread_count = 1
        decoder.flags |= Flags.low_delay
        return decoder

    def _encoded_again(self, sample: bytes, at: int) -> Iterator[Packet[Any]]:
        assert self._decoder is not None
        for frame in self._decoder.decode(self._packet(sample, at)):
            rate = min(max(self.bit_rate, _LEAST_BIT_RATE), _MOST_BIT_RATE)
            scale = 2 if rate < _HALF_SIZE_BELOW else 1
            width, height = (length // scale // 2 * 2 for length in (frame.width, frame.height))
            if self._codec == "VP8":  # which players take for BT.601
                frame = self._colours.reformat(
                    frame, width, height, src_colorspace=_BT709, dst_colorspace=_BT601
                )
            elif scale > 1:
                frame = self._colours.reformat(frame, width, height)
            if self._encoder is None or self._differs(self._encoder, width, rate=rate):
                self._encoder = _open_encoder(self._codec, width, height, rate=rate)
            yield from self._packed(frame, at)

    def _differs(self, encoder: VideoCodecContext, width: int, *, rate: int) -> bool:
        old = encoder.bit_rate or rate
        return encoder.width != width or abs(rate - old) > _REOPEN * old

    def _packed(self, frame: VideoFrame, at: int) -> Iterator[Packet[Any]]:
        assert self._encoder is not None
        frame.pts, frame.time_base = at, Fraction(1, self._timescale)
        frame.pict_type = PictureType.I if self._key_wanted else PictureType.NONE
        self._key_wanted = False
        for packet in self._encoder.encode(frame):
            data = bytes(packet)
            if packet.is_keyframe and self._codec == "H264":
                data = _annex_b(marks.keyframe_unit()) + data
            yield self._packet(data, at)


def _open_encoder(codec: Codec, width: int, height: int, *, rate: int) -> VideoCodecContext:
    name = "libx264" if codec == "H264" else "libvpx"
    encoder = cast(VideoCodecContext, CodecContext.create(name, "w"))
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 12_800), Fraction(25)
    encoder.bit_rate, encoder.gop_size, encoder.thread_count = rate, 3000, 1
    if codec == "H264":
        encoder.profile = "Baseline"
        encoder.color_primaries = encoder.color_trc = encoder.colorspace = _BT709.value
        encoder.color_range = ColorRange.MPEG.value
        options = {"preset": "veryfast", "tune": "zerolatency", "forced-idr": "1"}
        encoder.options = {**options, "maxrate": str(rate), "bufsize": str(rate // 2)}
    else:
        options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
        limits = {"minrate": str(rate // 4), "maxrate": str(rate), "bufsize": str(rate)}
        encoder.options = {**options, **limits, "undershoot-pct": "100", "overshoot-pct": "15"}
    encoder.open()
    return encoder


def _annex_b(sample: bytes) -> bytes:
    """An MP4 sample's NAL units with start codes instead of lengths of four bytes."""
    parts, at = [], 0
    while at < len(sample):
        size = int.from_bytes(sample[at : at + 4], "big")
        parts += [_START_CODE, sample[at + 4 : at + 4 + size]]
        at += 4 + size
    return b"".join(parts)
