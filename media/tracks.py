"""The sound track of one file, decoded by FFmpeg: through damage, with its pauses."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from numpy.typing import NDArray

from media.errors import MediaError
from media.formats import Part
from media.survey import LONGEST_PAUSE_S, Survey, seconds_of, survey

Samples = NDArray[np.float32]

# FFmpeg's decoders of what people's files hold. It knows hundreds more, most of them old and little
# tested; and no pictures are decoded.
_DECODERS = (
    "aac,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_yamaha,alac,amrnb,amrwb,dca,eac3,flac,g722,"
    "g726,gsm_ms,libopencore_amrnb,libopencore_amrwb,libopus,libspeex,libvorbis,mlp,mp1,mp1float,"
    "mp2,mp2float,mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,"
    "pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s64be,pcm_s64le,pcm_s8,pcm_u8,"
    "speex,truehd,vorbis,wavpack"
)
# Tags may be in Latin-1; from 19 on PyAV does not mind.
_ANY_TAGS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
_DEMUX_ERRORS = 100  # in a row
_NEGATIVE = 1 << 31  # durations from here on are negative ones of 32 bits
_DRIFT_S = 0.05  # timestamps may be this far from the samples: containers round them
_KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_AUDIBLE = 1e-4  # -80 dB


@dataclass(frozen=True)
class Chunk:
    """(C, N) samples at ``rate`` Hz; ``channels`` are FFmpeg's names."""

    rate: int
    channels: tuple[str, ...]
    samples: Samples

    def like(self, other: Chunk) -> bool:
        """Whether both have one rate and the same channels."""
        return (self.rate, self.channels) == (other.rate, other.channels)


@dataclass(frozen=True)
class _Decoded:
    """A frame at its timestamp, if that is known, after ``lost_s`` that could not be decoded."""

    chunk: Chunk
    at_s: float | None
    lost_s: float


@dataclass(frozen=True)
class Track:
    """The track of ``part`` at ``index`` among its sound tracks, for FFmpeg's decoder ``codec``."""

    part: Part
    index: int
    codec: str
    survey: Survey = field(default_factory=Survey)

    def chunks(self) -> Iterator[Chunk]:
        """All that can be decoded, with silence for lost packets and pauses."""
        with closing(_opened(self.part)) as container:
            due_s: float | None = None
            for this, after in pairwise(chain(self._decoded(container), [None])):
                if this is None:
                    return
                silence_s, due_s = _silence_before(this, after, due_s)
                yield from _silence(this.chunk, silence_s)
                yield this.chunk

    def _decoded(self, container: InputContainer) -> Iterator[_Decoded]:
        stream = container.streams.audio[self.index]
        decoders = [stream.codec_context]
        if self.codec == "flac":
            # Rate and block size may change within a track, to what its header does not allow.
            decoders.append(cast("AudioCodecContext", av.CodecContext.create("flac", "r")))
        lost_s = 0.0
        for packet in _packets(container, stream):
            frames = _frames(_whole_samples(packet, self.codec), decoders)
            if frames is None:
                lost_s += seconds_of(packet)
                continue
            for frame in frames:
                if (chunk := _chunk(frame)) is not None:
                    yield _Decoded(chunk, frame.time if self.part.timed else None, lost_s)
                    lost_s = 0.0

    def surveyed(self, container: InputContainer, max_s: float) -> Track:
        """With a survey of its packets in the opened ``container``."""
        packets = _packets(container, container.streams.audio[self.index])
        return replace(self, survey=survey(packets, self.codec, max_s))


def find_track(part: Part, max_s: float) -> Track:
    """The default track of ``part``, or the first that can be decoded; an audible one if any is.

    It is surveyed up to ``max_s`` seconds. Raises `MediaError` ``unsupported_media`` if there is
    none.
    """
    with closing(_opened(part)) as container:
        streams = container.streams.audio
        codecs = [_codec(stream) for stream in streams]
        usual = [bool(stream.disposition & Disposition.default) for stream in streams]
        allowed = _DECODERS.split(",")
        known = [Track(part, i, codec) for i, codec in enumerate(codecs) if codec in allowed]
        known.sort(key=lambda track: not usual[track.index])
        if len(known) == 1:
            return known[0].surveyed(container, max_s)
    if not known:
        found = f"tracks of codec {', '.join(codecs)}" if codecs else "no sound track"
        raise MediaError(
            "unsupported_media",
            f"the {part.demuxer} file has {found}, expected AAC, AC-3, ALAC, AMR, DTS, FLAC, MP3, "
            "Opus, PCM, Speex, TrueHD, Vorbis or WavPack",
        )
    track = next((track for track in known if _is_audible(track)), known[0])
    with closing(_opened(part)) as container:
        return track.surveyed(container, max_s)


def _is_audible(track: Track) -> bool:
    with closing(track.chunks()) as chunks:  # type: ignore[type-var]
        return any(np.abs(chunk.samples).max(initial=0.0) > _AUDIBLE for chunk in chunks)


def _codec(stream: AudioStream) -> str:
    """The name of its decoder."""
    context = stream.codec_context
    return context.codec.name if context is not None else "unknown"


def _opened(part: Part) -> InputContainer:
    options = {"codec_whitelist": _DECODERS, **part.options}
    try:
        return av.open(_View(part.data), "r", format=part.demuxer, options=options, **_ANY_TAGS)
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            "unsupported_media", f"the {part.demuxer} file cannot be read: {error}"
        ) from error


class _View(io.RawIOBase):
    """Reads ``data`` without a copy."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, len(self._data))[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at


def _packets(container: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
    """Those of ``stream``, and what ends it. A broken place in the container is passed over."""
    errors = 0
    while errors < _DEMUX_ERRORS:
        try:
            for packet in container.demux(stream):
                errors = 0
                # The last of Vorbis may lie past the end that its page states.
                if not packet.duration or packet.duration < _NEGATIVE:
                    yield packet
            return
        except av.FFmpegError:
            errors += 1


def _frames(
    packet: Packet[AudioStream], decoders: Iterable[AudioCodecContext]
) -> list[AudioFrame] | None:
    """By the first of ``decoders`` that can; ``None`` if none can."""
    for decoder in decoders:
        with suppress(av.FFmpegError, ValueError):
            return decoder.decode(packet)
    return None


def _whole_samples(packet: Packet[AudioStream], codec: str) -> Packet[AudioStream]:
    """Without the half sample at the end of a cut file, for which FFmpeg refuses the packet."""
    if not packet.is_corrupt or not codec.startswith("pcm_"):
        return packet
    bits = re.search(r"\d+", codec)
    size = max(1, packet.stream.codec_context.channels) * (int(bits[0]) // 8 if bits else 1)
    whole: Packet[Any] = Packet(bytes(packet)[: packet.size // size * size])
    return whole


def _silence_before(
    this: _Decoded, after: _Decoded | None, due_s: float | None
) -> tuple[float, float]:
    """Seconds of silence before ``this``, and the timestamp at which the sound after it is due.

    ``due_s`` is that of ``this``, ``None`` for the first. A timestamp from which the next does not
    go on is damage.
    """
    seconds = this.chunk.samples.shape[1] / this.chunk.rate
    silence_s = 0.0 if due_s is None else min(this.lost_s, LONGEST_PAUSE_S)
    at_s = this.at_s
    due_s = (at_s or 0.0) if due_s is None else due_s + silence_s
    if at_s is not None and abs(ahead_s := at_s - due_s) > _DRIFT_S:
        next_s = at_s if after is None or after.at_s is None else after.at_s
        if 0.0 < ahead_s < LONGEST_PAUSE_S and 0.0 < next_s - at_s < LONGEST_PAUSE_S:
            silence_s, due_s = silence_s + ahead_s, at_s
        elif abs(next_s - at_s - seconds) <= _DRIFT_S:
            due_s = at_s
    return silence_s, due_s + seconds


def _silence(like: Chunk, seconds: float) -> Iterator[Chunk]:
    left = round(seconds * like.rate)
    while left:
        count = min(left, like.rate)
        yield Chunk(like.rate, like.channels, np.zeros((len(like.channels), count), np.float32))
        left -= count


def _chunk(frame: AudioFrame) -> Chunk | None:
    """``None`` if the frame is empty."""
    if not frame.samples or not frame.sample_rate:
        return None
    names = tuple(channel.name for channel in frame.layout.channels)
    if frame.format.is_planar:
        # Not `to_ndarray`: of eight channels it reads one plane too many, and may crash.
        planes = [_plane(frame, index) for index in range(len(names))]
        values = np.stack([plane[: frame.samples] for plane in planes])
    else:
        values = _plane(frame, 0)[: frame.samples * len(names)].reshape(frame.samples, -1).T
    return Chunk(frame.sample_rate, names, _floats(values))


def _plane(frame: AudioFrame, index: int) -> NDArray[Any]:
    kind = np.dtype(_KINDS[frame.format.name.removesuffix("p")])
    data = memoryview(AudioPlane(frame, index))
    return np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)


def _floats(values: NDArray[Any]) -> Samples:
    """Integers as parts of their full scale."""
    if values.dtype.kind == "f":
        # A float file may hold anything; one NaN would spread through the mix and the resamplers.
        with np.errstate(over="ignore"):
            return np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    zero = 128 if values.dtype.kind == "u" else 0
    scale = 2.0 ** (8 * values.dtype.itemsize - 1)
    return (values.astype(np.float32) - zero) / np.float32(scale)
