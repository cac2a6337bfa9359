"""Generates files that once crashed a decoder."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import soundfile

from tests.server.media_files import encoded_sound

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_USE_DESCRIPTIONS = 0
LEFT, RIGHT, UNUSED = 1, 2, 0  # labels of Apple's CoreAudioTypes.h


def quicktime(labels: tuple[int, ...], seconds: float = 0.5, rate: int = 48_000) -> bytes:
    """PCM in QuickTime whose `chan` box labels each channel, in any order."""
    file = io.BytesIO()
    pcm = np.random.default_rng(0).integers(-3000, 3000, (1, 2 * round(seconds * rate)), np.int16)
    with av.open(file, "w", format="mov") as out:
        stream = out.add_stream("pcm_s16le", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="stereo")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    channels = b"".join(struct.pack(">2I12x", label, 0) for label in labels)
    chan = struct.pack(">4I", 0, _USE_DESCRIPTIONS, 0, len(labels)) + channels
    changed, count = _replaced(file.getvalue(), chan)
    assert count == 1
    return changed


def _replaced(data: bytes, chan: bytes) -> tuple[bytes, int]:
    """The boxes in ``data`` with another `chan`. Samples lie before `moov`, and do not move."""
    out, at, count = b"", 0, 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + size]
        if kind in _CONTAINERS:
            body, found = _replaced(body, chan)
            count += found
        elif kind == b"stsd":
            entry, found = _replaced_in_entry(body[8:], chan)
            body, count = body[:8] + entry, count + found
        elif kind == b"chan":
            body, count = chan, count + 1
        out += struct.pack(">I4s", 8 + len(body), kind) + body
        at += size
    return out, count


def _replaced_in_entry(entry: bytes, chan: bytes) -> tuple[bytes, int]:
    version = struct.unpack_from(">H", entry, 16)[0]
    head = 36 + (16 if version == 1 else 36 if version == 2 else 0)
    boxes, count = _replaced(entry[head:], chan)
    return struct.pack(">I", head + len(boxes)) + entry[4:head] + boxes, count


def nameless_codec() -> bytes:
    """A WebM with an unknown codec."""
    return encoded_sound(0.5, "webm").replace(b"A_OPUS", b"A_QQQQ")


def integer_floats(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    """A float WAV whose samples are integers of 16 bits."""
    file = io.BytesIO()
    pcm = np.random.default_rng(0).integers(-9000, 9000, round(seconds * rate))
    soundfile.write(file, pcm.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
