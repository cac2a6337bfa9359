"""ISO base media boxes: the bytes of a fragmented MP4 with one video and one AAC track."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VIDEO_TRACK = 1
AUDIO_TRACK = 2

_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_MOVIE_TIMESCALE = 1000  # ticks per second
_UNDETERMINED = 0x55C4  # ISO 639-2 "und", five bits a letter
_SYNC_SAMPLE = 0x0200_0000
_DEPENDENT_SAMPLE = 0x0101_0000
_VP9_LEVELS = {30: 552_960, 31: 983_040, 40: 2_228_224}  # with the most samples of a picture


@dataclass(frozen=True)
class SampleDescription:
    """How samples are decoded: the sample entry's four letters, its configuration box and the
    ``codec`` of RFC 6381."""

    kind: bytes
    configuration: bytes
    codec: str


@dataclass(frozen=True)
class VideoTrack:
    """``timescale`` is in ticks per second."""

    width: int
    height: int
    timescale: int
    description: SampleDescription


@dataclass(frozen=True)
class AudioTrack:
    """``config`` is the AudioSpecificConfig; ticks are samples."""

    sample_rate: int
    bit_rate: int
    config: bytes


@dataclass(frozen=True)
class Run:
    """Consecutive samples of one track: ``durations`` in ticks of its timescale.

    ``sync``: the first is a sync sample, decodable without earlier ones.
    """

    track: int
    decode_time: int
    samples: Sequence[bytes]
    durations: Sequence[int]
    sync: bool


def box(kind: bytes, *parts: bytes) -> bytes:
    """One box of four-letter ``kind``."""
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A box whose payload starts with version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def avc_description(parameter_sets: Sequence[tuple[bytes, bytes]]) -> SampleDescription:
    """H.264, from pairs of SPS and PPS, raw NAL units (ISO/IEC 14496-15, 5.3.3).

    Profile and constraints are the first pair's, the level is the highest of all.
    """
    spss, ppss = zip(*parameter_sets, strict=True)
    if short := [len(sps) for sps in spss if len(sps) < 4]:
        raise ValueError(f"SPS of {short[0]} bytes, expected at least 4")
    profile = spss[0][1:3] + bytes([max(sps[3] for sps in spss)])
    sized = [[struct.pack(">H", len(unit)) + unit for unit in units] for units in (spss, ppss)]
    configuration = box(
        b"avcC",
        bytes([1, *profile, 0xFC | 3, 0xE0 | len(spss)]),  # lengths of four bytes
        *sized[0],
        bytes([len(ppss)]),
        *sized[1],
    )
    return SampleDescription(b"avc1", configuration, f"avc1.{profile.hex()}")


def vp9_description(width: int, height: int) -> SampleDescription:
    """VP9, profile 0, 8 bits, 4:2:0, BT.709 in limited range (VP codec ISO media binding, 1.0)."""
    area = width * height
    level = next(level for level, most in _VP9_LEVELS.items() if area <= most)
    bits_and_range = 8 << 4 | 1 << 1  # chroma sited with luma's first sample
    configuration = full_box(
        b"vpcC", 1, 0, bytes([0, level, bits_and_range, 1, 1, 1]), struct.pack(">H", 0)
    )
    return SampleDescription(b"vp09", configuration, f"vp09.00.{level}.08")


def av1_description(sequence_header: bytes) -> SampleDescription:
    """AV1, main profile, 8 bits, 4:2:0, from its sequence header OBU (AV1 ISO media binding, 2.3).

    Its level is five bits after profile, flags and the first operating point.
    """
    if len(sequence_header) < 6 or sequence_header[0] != 0x0A:
        raise ValueError("extradata is no AV1 sequence header")
    level = sequence_header[5] >> 3
    subsampled_420 = 0b1100
    configuration = box(b"av1C", bytes([0x81, level, subsampled_420, 0]), sequence_header)
    return SampleDescription(b"av01", configuration, f"av01.0.{level:02}M.08")


def init_segment(
    video: VideoTrack, audio: AudioTrack, *, marks: bytes = b"", user_data: bytes = b""
) -> bytes:
    """``ftyp`` and ``moov``, which a player needs before the first fragment.

    ``marks`` are boxes between them, ``user_data`` is the ``udta`` box in ``moov``.
    """
    brands = b"iso6" + struct.pack(">I", 1) + b"iso6iso5avc1mp41"
    header = struct.pack(">4I", 0, 0, _MOVIE_TIMESCALE, 0) + struct.pack(">IH10x", 0x10000, 0x100)
    movie = box(
        b"moov",
        full_box(b"mvhd", 0, 0, header, _MATRIX, bytes(24), struct.pack(">I", 3)),
        _video_trak(video),
        _audio_trak(audio),
        box(b"mvex", _trex(VIDEO_TRACK, _DEPENDENT_SAMPLE), _trex(AUDIO_TRACK, _SYNC_SAMPLE)),
        user_data,
    )
    return box(b"ftyp", brands) + marks + movie


def with_duration(init: bytes, duration_s: float) -> bytes:
    """The init segment with the length of the whole video (``mehd``), so that players can seek.

    Replaces a length that it has. ``init`` is one of `init_segment`, possibly marked.
    """
    return b"".join(
        _with_extends_header(body, duration_s) if kind == b"moov" else box(kind, body)
        for kind, body in children(init)
    )


def _with_extends_header(movie: bytes, duration_s: float) -> bytes:
    header = full_box(b"mehd", 1, 0, struct.pack(">Q", round(duration_s * _MOVIE_TIMESCALE)))
    parts = []
    for kind, body in children(movie):
        if kind == b"mvex":
            kept = [box(k, b) for k, b in children(body) if k != b"mehd"]
            parts.append(box(kind, header, *kept))
        else:
            parts.append(box(kind, body))
    return box(b"moov", *parts)


def children(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, payload) of consecutive boxes with 32-bit sizes, as all of this module are."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            raise ValueError(f"a box {kind!r} of {size} bytes, expected 8 to {len(data) - at}")
        yield kind, data[at + 8 : at + size]
        at += size


def fragment(sequence: int, runs: Sequence[Run]) -> bytes:
    """One ``moof`` + ``mdat``. In a video run only the first may be a sync sample."""
    head = full_box(b"mfhd", 0, 0, struct.pack(">I", sequence))
    size = len(box(b"moof", head, *(_traf(run, 0) for run in runs)))
    offset = size + 8  # past the header of mdat
    trafs = []
    for run in runs:
        trafs.append(_traf(run, offset))
        offset += sum(map(len, run.samples))
    data = [sample for run in runs for sample in run.samples]
    return box(b"moof", head, *trafs) + box(b"mdat", *data)


def read_fragment(data: bytes) -> list[Run]:
    """The inverse of `fragment`, without its sequence number.

    Raises ``ValueError`` for anything else.
    """
    try:
        return [_run(traf, data) for traf in _descend(data, b"moof", b"traf")]
    except (struct.error, KeyError) as error:
        raise ValueError(f"not a fragment of this muxer: {error!r}") from error


def _run(traf: bytes, data: bytes) -> Run:
    fields = dict(children(traf))
    (track,) = struct.unpack_from(">I", fields[b"tfhd"], 4)
    (decode_time,) = struct.unpack_from(">Q", fields[b"tfdt"], 4)
    flags, count, offset = struct.unpack_from(">IIi", fields[b"trun"])
    first_flags = bool(flags & 0x4)
    table = struct.unpack_from(f">{2 * count}I", fields[b"trun"], 16 if first_flags else 12)
    samples = []
    for size in table[1::2]:
        samples.append(data[offset : offset + size])
        offset += size
    sync = track != VIDEO_TRACK or first_flags
    return Run(track, decode_time, samples, list(table[::2]), sync)


@dataclass(frozen=True)
class Description:
    """What an init segment says of its video track.

    ``video`` and ``configuration`` are the sample entry's four letters and its configuration box's
    content, ``timescale`` its ticks a second.
    """

    video: bytes
    configuration: bytes
    timescale: int
    width: int
    height: int


def read_init_segment(data: bytes) -> Description:
    """What `init_segment` was given. Raises ``ValueError`` for anything else."""
    try:
        video, _ = _descend(data, b"moov", b"trak", b"mdia")
        ((kind, entry),) = children(_sample_entry(video))
        configurations = {b"avcC", b"vpcC", b"av1C"}
        (configuration,) = (b for k, b in children(entry[78:]) if k in configurations)
        (timescale,) = struct.unpack_from(">I", dict(children(video))[b"mdhd"], 12)
        width, height = struct.unpack_from(">2H", entry, 24)
        return Description(kind, configuration, timescale, width, height)
    except (struct.error, KeyError) as error:
        raise ValueError(f"not an init segment of this muxer: {error!r}") from error


def _sample_entry(mdia: bytes) -> bytes:
    (stsd,) = _descend(mdia, b"minf", b"stbl", b"stsd")
    return stsd[8:]


def _descend(data: bytes, *path: bytes) -> list[bytes]:
    """The payloads of all boxes at ``path``."""
    for kind in path[:-1]:
        data = b"".join(body for found, body in children(data) if found == kind)
    return [body for found, body in children(data) if found == path[-1]]


def parameter_sets(avcc: bytes) -> list[bytes]:
    """The SPS and PPS of an `avc_description`'s configuration, in order."""
    units, at = [], 5
    for mask in (0x1F, 0xFF):
        count, at = avcc[at] & mask, at + 1
        for _ in range(count):
            (size,) = struct.unpack_from(">H", avcc, at)
            units.append(avcc[at + 2 : at + 2 + size])
            at += 2 + size
    return units


def _traf(run: Run, data_offset: int) -> bytes:
    default_base_is_moof = 0x020000
    count = len(run.samples)
    table = struct.pack(
        f">{2 * count}I",
        *(n for d, s in zip(run.durations, run.samples, strict=True) for n in (d, len(s))),
    )
    flags, first = 0x1 | 0x100 | 0x200, b""
    if run.track == VIDEO_TRACK and run.sync:
        flags, first = flags | 0x4, struct.pack(">I", _SYNC_SAMPLE)
    return box(
        b"traf",
        full_box(b"tfhd", 0, default_base_is_moof, struct.pack(">I", run.track)),
        full_box(b"tfdt", 1, 0, struct.pack(">Q", run.decode_time)),
        full_box(b"trun", 0, flags, struct.pack(">Ii", count, data_offset), first, table),
    )


def _trex(track: int, flags: int) -> bytes:
    return full_box(b"trex", 0, 0, struct.pack(">5I", track, 1, 0, 0, flags))


def _tkhd(track: int, *, volume: int, width: int, height: int) -> bytes:
    enabled_in_movie = 3
    return full_box(
        b"tkhd",
        0,
        enabled_in_movie,
        struct.pack(">5I8x", 0, 0, track, 0, 0),
        struct.pack(">4H", 0, 0, volume, 0),
        _MATRIX,
        struct.pack(">2I", width << 16, height << 16),
    )


def _mdia(
    timescale: int, handler: bytes, *, name: bytes, media_header: bytes, entry: bytes
) -> bytes:
    none = struct.pack(">I", 0)
    tables = box(
        b"stbl",
        full_box(b"stsd", 0, 0, struct.pack(">I", 1), entry),
        full_box(b"stts", 0, 0, none),
        full_box(b"stsc", 0, 0, none),
        full_box(b"stsz", 0, 0, none, none),
        full_box(b"stco", 0, 0, none),
    )
    here = box(b"dinf", full_box(b"dref", 0, 0, struct.pack(">I", 1), full_box(b"url ", 0, 1)))
    return box(
        b"mdia",
        full_box(b"mdhd", 0, 0, struct.pack(">4I2H", 0, 0, timescale, 0, _UNDETERMINED, 0)),
        full_box(b"hdlr", 0, 0, none, handler, bytes(12), name + b"\0"),
        box(b"minf", media_header, here, tables),
    )


def _video_trak(video: VideoTrack) -> bytes:
    bt709_limited = box(b"colr", b"nclx", struct.pack(">3HB", 1, 1, 1, 0))
    entry = box(
        video.description.kind,
        struct.pack(">6xH16x2H", 1, video.width, video.height),
        struct.pack(">3IH32xHh", 72 << 16, 72 << 16, 0, 1, 24, -1),
        video.description.configuration,
        bt709_limited,
        box(b"pasp", struct.pack(">2I", 1, 1)),
    )
    header = full_box(b"vmhd", 0, 1, bytes(8))
    return box(
        b"trak",
        _tkhd(VIDEO_TRACK, volume=0, width=video.width, height=video.height),
        _mdia(video.timescale, b"vide", name=b"VideoHandler", media_header=header, entry=entry),
    )


def _descriptor(tag: int, payload: bytes) -> bytes:
    return bytes([tag, len(payload)]) + payload


def _audio_trak(audio: AudioTrack) -> bytes:
    aac, audio_stream = 0x40, 0x05 << 2 | 1
    config = _descriptor(
        4,
        bytes([aac, audio_stream, 0, 0, 0])
        + struct.pack(">2I", audio.bit_rate, audio.bit_rate)
        + _descriptor(5, audio.config),
    )
    stream = _descriptor(3, struct.pack(">HB", AUDIO_TRACK, 0) + config + _descriptor(6, b"\x02"))
    entry = box(
        b"mp4a",
        struct.pack(">6xH8x2H4xI", 1, 1, 16, audio.sample_rate << 16),
        full_box(b"esds", 0, 0, stream),
    )
    header = full_box(b"smhd", 0, 0, bytes(4))
    return box(
        b"trak",
        _tkhd(AUDIO_TRACK, volume=0x100, width=0, height=0),
        _mdia(audio.sample_rate, b"soun", name=b"SoundHandler", media_header=header, entry=entry),
    )
