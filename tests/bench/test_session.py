from __future__ import annotations

import struct
import wave
from pathlib import Path

import pytest

from bench.live.session import BrokenFragmentError, Voice, check_fragment


def box(kind: bytes, size: int) -> bytes:
    return struct.pack(">I4s", 8 + size, kind) + bytes(size)


def test_a_fragment_is_one_moof_and_one_mdat() -> None:
    check_fragment(box(b"moof", 100) + box(b"mdat", 5000))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        box(b"moof", 10),
        box(b"mdat", 10) + box(b"moof", 10),
        box(b"moof", 10) + box(b"mdat", 10)[:-1],
        box(b"moof", 10) + box(b"mdat", 10) + b"x",
        struct.pack(">I4s", 0, b"moof") + box(b"mdat", 1),
    ],
)
def test_anything_else_is_none(blob: bytes) -> None:
    with pytest.raises(BrokenFragmentError, match=f"{len(blob)} bytes"):
        check_fragment(blob)


def write(path: Path, channels: int, samples: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"".join(struct.pack("<h", i) for i in range(samples * channels)))
    return path


def test_a_voice_goes_round(tmp_path: Path) -> None:
    voice = Voice.read(write(tmp_path / "voice.wav", 1, 1000))
    chunks = list(voice.chunks(0.2, 0.02))
    assert len(chunks) == 10
    assert {len(chunk) for chunk in chunks} == {640}
    values = struct.unpack("<3200h", b"".join(chunks))
    assert values == tuple(i % 1000 for i in range(3200))


def test_stereo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 channels of 16 bits, expected 1 of 16"):
        Voice.read(write(tmp_path / "voice.wav", 2, 10))
