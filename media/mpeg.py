"""Frames of MPEG audio and AAC in ADTS, and ID3 tags: files that are rows of frames."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_HEADERS = re.compile(rb"ID3|Xing|Info|VBRI")
_JUNK_BYTES = 1 << 16  # before the first frame
_FRAMES_IN_A_ROW = 3
_ID3V1_BYTES = 128

_RATES = (44_100, 48_000, 32_000)  # of MPEG 1; MPEG 2 has half of them, MPEG 2.5 a quarter
_HALVED = {3: 0, 2: 1, 0: 2}
_KBITS = {  # by MPEG 1 or not, and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def first_frame(blob: bytes, start: int) -> tuple[str, int] | None:
    """``mp3`` or ``aac`` and where the first row of such frames begins.

    Before it may lie the rest of a cut frame, or padding.
    """
    for sync in _SYNC.finditer(blob, start, start + _JUNK_BYTES):
        at = sync.start()
        for kind, size_at in (("aac", adts_bytes), ("mp3", frame_bytes)):
            if _frames_at(blob, at, size_at) >= (1 if at == start else 2):
                return kind, at
    return None


def _frames_at(blob: bytes, at: int, size_at: Callable[[bytes, int], int]) -> int:
    """How many frames follow each other; 0 if something else follows, before the end or many."""
    count = 0
    while count < _FRAMES_IN_A_ROW and at < len(blob) - _ID3V1_BYTES * bool(count):
        size = size_at(blob, at)
        if not size:
            return 0
        at += size
        count += 1
    return count


def adts_bytes(blob: bytes, at: int) -> int:
    """Of the ADTS frame at ``at`` (ISO 13818-7, 6.2); 0 if there is none."""
    head = blob[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0


def frame_bytes(blob: bytes, at: int) -> int:
    """Of the MPEG audio frame at ``at`` (ISO 11172-3, 2.4.1.3); 0 if there is none."""
    head = blob[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE2:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    hertz = _RATES[rate] >> _HALVED[version]
    bits = 1000 * _KBITS[version == 3, layer][bitrate - 1]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return 4 * (12 * bits // hertz + padding)
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits // hertz + padding


def after_tags(blob: bytes, at: int) -> int:
    """Past ID3v2 tags, which may precede any format, and the zeros that some writers add."""
    while size := id3_bytes(blob, at):
        at += size
        while blob[at : at + 1] == b"\0":
            at += 1
    return at


def id3_bytes(blob: bytes, at: int) -> int:
    """Of the ID3v2 tag at ``at``; 0 if there is none."""
    head = blob[at : at + 10]
    if len(head) < 10 or head[:3] != b"ID3" or head[3] == 0xFF or any(b > 0x7F for b in head[6:]):
        return 0
    footer = 10 if head[5] & 0x10 else 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + footer


def file_starts(blob: bytes) -> Iterator[int]:
    """Where joined MP3 files begin.

    After an ID3 tag, or at a frame with LAME's header: it says what padding *its* file has.
    """
    for match in _HEADERS.finditer(blob):
        at = match.start()
        if match[0] == b"ID3":
            after = after_tags(blob, at)
            if after > at and frame_bytes(blob, after):
                yield after
        else:
            for before in (36, 21, 13):  # the frame's header and side information
                if at >= before and frame_bytes(blob, at - before):
                    yield at - before
                    break
