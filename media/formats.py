"""Recognise a sound file by its first bytes, and part it where several files were joined.

Speech services send one file after another, each with its header; FFmpeg reads the first only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

from media import mpeg
from media.errors import MediaError

PROMISED = (
    "WAV, FLAC, MP3, Ogg (Opus, Vorbis, FLAC, Speex), M4A, MP4, MOV, 3GP, WebM, Matroska, "
    "AAC, AMR, AIFF, AU, CAF or W64"
)


def _compiled(patterns: dict[str, bytes]) -> dict[str, re.Pattern[bytes]]:
    return {name: re.compile(pattern, re.DOTALL) for name, pattern in patterns.items()}


# FFmpeg's demuxer by the first bytes. Left to guess, FFmpeg would try parsers of old formats and
# follow playlists to other files. QuickTime before 2004 has no `ftyp`.
_MAGIC = _compiled(
    {
        "wav": rb"(?:RIFF|RIFX|RF64|BW64)....WAVE",
        "w64": rb"riff\x2e\x91\xcf\x11",
        "flac": rb"fLaC",
        "ogg": rb"OggS",
        "matroska": rb"\x1a\x45\xdf\xa3",
        "mov": rb"....(?:ftyp|moov|mdat|wide|free|skip|styp|moof)",
        "aiff": rb"FORM....AIF[FC]",
        "au": rb"\.snd",
        "caf": rb"caff\x00\x01",
        "amr": rb"#!AMR(?:-WB)?\n",
    }
)
# Named in the error. Some hold rows of MPEG frames, which would otherwise be taken for MP3.
_REFUSED = _compiled(
    {
        "WMA or WMV": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        "AVI": rb"RIFF....AVI ",
        "FLV": rb"FLV\x01",
        "MPEG-TS": rb"G.{187}G.{187}G",
        "MPEG-PS": rb"\x00\x00\x01\xba",
        "AC-3": rb"\x0b\x77",
        "WavPack": rb"wvpk",
        "True Audio": rb"TTA[12]",
        "Monkey's Audio": rb"MAC ",
        "Musepack": rb"MP\+|MPCK",
        "DSD": rb"DSD |FRM8",
        "MIDI, which is no sound": rb"MThd",
    }
)
# `wav`: read to the end of what we pass on, and do not search plain samples for other codecs.
_OPTIONS = {"wav": {"ignore_length": "1", "probesize": "8192"}, "w64": {"probesize": "8192"}}
_TIMED = ("mov", "matroska", "ogg")
_UNKNOWN = 0xFFFFFFFF  # a size that its writer did not know; so is 0


@dataclass(frozen=True)
class Part:
    """A file of its own within an upload, for FFmpeg's ``demuxer``."""

    demuxer: str
    data: memoryview

    @property
    def options(self) -> dict[str, str]:
        """Of the demuxer."""
        return _OPTIONS.get(self.demuxer, {})

    @property
    def timed(self) -> bool:
        """Whether its timestamps are kept, not counted: a jump of them is a pause."""
        return self.demuxer in _TIMED


def parts(blob: bytes) -> list[Part]:
    """The files that were joined in ``blob``, repaired: nearly always one.

    Raises `MediaError` ``unsupported_media`` for formats that are not promised.
    """
    demuxer, start = _recognised(blob)
    starts = [start, *(at for at in _STARTS.get(demuxer, _no_starts)(blob) if at > start)]
    view = memoryview(blob)
    pieces = [view[at:end] for at, end in pairwise([*starts, len(blob)])]
    repair = _REPAIRS.get(demuxer, memoryview)
    return [Part(demuxer, repair(piece)) for piece in pieces]


def _recognised(blob: bytes) -> tuple[str, int]:
    """The demuxer, and where to start it."""
    start = mpeg.after_tags(blob, 0)
    for demuxer, magic in _MAGIC.items():
        if magic.match(blob, start):
            return demuxer, start
    for name, magic in _REFUSED.items():
        if magic.match(blob, start):
            raise MediaError("unsupported_media", f"the audio is {name}, expected {PROMISED}")
    if found := mpeg.first_frame(blob, start):
        return found
    raise MediaError("unsupported_media", f"the audio is of no known format, expected {PROMISED}")


# Where joined files begin.

_WAVE = re.compile(rb"WAVE(?:fmt |JUNK|junk|LIST|bext|ds64|fact|FLLR)")
_PAGE, _FIRST_PAGE = re.compile(rb"OggS\x00[\x00-\x07]"), re.compile(rb"OggS\x00[\x02\x03\x06\x07]")


def _no_starts(blob: bytes) -> Iterator[int]:
    yield from ()


def _matches(pattern: bytes) -> Callable[[bytes], Iterator[int]]:
    compiled = re.compile(pattern, re.DOTALL)
    return lambda blob: (match.start() for match in compiled.finditer(blob))


def _wav_starts(blob: bytes) -> Iterator[int]:
    for match in _WAVE.finditer(blob):
        at = match.start() - 8
        if blob[at : at + 4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
            yield at


def _ogg_starts(blob: bytes) -> Iterator[int]:
    """At a stream's first page that follows no other such page: the next link of a chain."""
    previous_end = -1
    for match in _FIRST_PAGE.finditer(blob):
        if match.start() != previous_end:
            yield match.start()
        previous_end = _page_end(blob, match.start())


def _mov_starts(blob: bytes) -> Iterator[int]:
    """At each `ftyp` of the top level."""
    at = 0
    while at + 16 <= len(blob):
        size, kind, large = struct.unpack_from(">I4sQ", blob, at)
        if kind == b"ftyp":
            yield at
        at += max(large if size == 1 else size, 8) if size else len(blob)


_STARTS: dict[str, Callable[[bytes], Iterator[int]]] = {
    "wav": _wav_starts,
    "flac": _matches(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "ogg": _ogg_starts,
    "mov": _mov_starts,
    "matroska": _matches(rb"\x1a\x45\xdf\xa3.{0,64}?\x42\x82(?:\x84webm|\x88matroska)"),
    "amr": _matches(rb"#!AMR(?:-WB)?\n"),
    "mp3": mpeg.file_starts,
}

# Repairs.


def _up_to_last_sample(wav: memoryview) -> memoryview:
    """``wav`` without what follows its samples, to be read to the end.

    Writers to a pipe do not know the size that the header states: it is 0, the greatest, or too
    small. It is believed only if other chunks follow, or nothing.
    """
    order = ">" if wav[:4] == memoryview(b"RIFX") else "<"
    at, wide = 12, 0
    while at + 8 <= len(wav):
        kind, size = struct.unpack_from(f"{order}4sI", wav, at)
        if kind == b"ds64" and at + 24 <= len(wav):  # RF64: sizes of 64 bits
            (wide,) = struct.unpack_from(f"{order}Q", wav, at + 16)
        if kind == b"data":
            end = at + 8 + (wide if size == _UNKNOWN and wide else size)
            return wav[:end] if _ends(bytes(wav[end : end + 4096]), len(wav) - end, order) else wav
        at += 8 + size + size % 2
    return wav


def _ends(rest: bytes, left: int, order: str) -> bool:
    """Whether the ``left`` bytes that begin with ``rest`` are chunks, zeros or an ID3v1 tag."""
    if left < 8 or not rest.strip(b"\0") or rest[:3] == b"TAG":
        return True
    for pad in (0, 1):
        kind, size = struct.unpack_from(f"{order}4sI", rest + b"\0", pad)
        if all(32 <= byte < 127 for byte in kind) and pad + 8 + size <= left + 1:
            return True
    return False


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _with_whole_pages(ogg: memoryview) -> memoryview:
    """``ogg`` with right checksums, and a last page of only what is there.

    One wrong byte, or a cut, would else cost a whole page, which may last a second.
    """
    starts = [match.start() for match in _PAGE.finditer(ogg)]
    changes: list[tuple[int, bytearray]] = []
    for at, end in pairwise([*starts, len(ogg)]):
        page = bytearray(ogg[at:end])
        if end == len(ogg) and _page_end(page, 0) > len(page):
            page = _shortened(page)
        elif len(page) < 27 or _page_end(page, 0) != len(page):
            continue  # its table of lengths is wrong
        page[22:26] = bytes(4)
        page[22:26] = _checksum(page)
        if page != ogg[at:end]:
            changes.append((at, page))
    if not changes:
        return ogg
    changed = bytearray(ogg)
    for at, page in changes:
        changed[at : at + len(page)] = page
    return memoryview(changed)


def _shortened(page: bytearray) -> bytearray:
    """A page that was cut, with those of its packets' segments that are whole."""
    lengths = page[27 : 27 + page[26]] if len(page) > 27 else bytearray()
    room, kept = len(page) - 27 - len(lengths), 0
    while kept < len(lengths) and room >= lengths[kept]:
        room -= lengths[kept]
        kept += 1
    data = page[27 + len(lengths) : len(page) - max(room, 0)]
    unknown_time = b"\xff" * 8  # the page's was of its end
    return page[:6] + unknown_time + page[14:26] + bytes([kept]) + lengths[:kept] + data


def _checksum(page: bytes | bytearray) -> bytes:
    """Of an Ogg page (RFC 3533, 6): zlib's with bits in the other order, from 0."""
    value = crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return value.to_bytes(4, "little").translate(_REVERSED)[::-1]


def _page_end(ogg: bytes | bytearray | memoryview, at: int) -> int:
    """Of the page at ``at``."""
    count = ogg[at + 26] if at + 26 < len(ogg) else 0
    return at + 27 + count + sum(ogg[at + 27 : at + 27 + count])


def _with_sizes(aiff: memoryview) -> memoryview:
    """``aiff`` with its sizes, which writers to a pipe leave at 0."""
    at = 12
    while at + 8 <= len(aiff):
        kind, size = struct.unpack_from(">4sI", aiff, at)
        if kind == b"SSND" and not size:
            changed = bytearray(aiff)
            struct.pack_into(">I", changed, 4, len(aiff) - 8)
            struct.pack_into(">I", changed, at + 4, len(aiff) - at - 8)
            return memoryview(changed)
        at += 8 + size + size % 2
    return aiff


_REPAIRS = {"wav": _up_to_last_sample, "ogg": _with_whole_pages, "aiff": _with_sizes}
