from __future__ import annotations

import io
import re
import struct
import tracemalloc

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from media.decode import MODEL_RATE, decode_audio
from media.errors import MediaError
from media.fmp4 import SAMPLE_RATE

Samples = NDArray[np.float32]


def tone(seconds: float, rate: int, hertz: float = 440.0) -> Samples:
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def with_soundfile(pcm: Samples, rate: int, kind: str, *, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=kind, subtype=subtype)
    return file.getvalue()


def with_av(pcm: Samples, rate: int, kind: str, *, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def decode(blob: bytes, max_s: float = 100.0) -> tuple[Samples, Samples]:
    blocks = list(decode_audio(blob, SAMPLE_RATE, max_s).blocks)
    return (
        np.concatenate([block.output for block in blocks]),
        np.concatenate([block.model for block in blocks]),
    )


def code_of(blob: bytes, max_s: float = 100.0) -> str:
    with pytest.raises(MediaError) as caught:
        decode(blob, max_s)
    return caught.value.code


FILES = {
    "wav": lambda: with_soundfile(tone(1.3, 22_050), 22_050, "WAV"),
    "wav-8-bit": lambda: with_soundfile(tone(1.3, 8_000), 8_000, "WAV", subtype="PCM_U8"),
    "wav-float": lambda: with_soundfile(tone(1.3, 96_000), 96_000, "WAV", subtype="FLOAT"),
    "flac": lambda: with_soundfile(tone(1.3, 44_100), 44_100, "FLAC"),
    "mp3": lambda: with_soundfile(tone(1.3, 44_100), 44_100, "MP3"),
    "ogg": lambda: with_soundfile(tone(1.3, 32_000), 32_000, "OGG", subtype="VORBIS"),
    "opus": lambda: with_soundfile(tone(1.3, 48_000), 48_000, "OGG", subtype="OPUS"),
    "m4a": lambda: with_av(tone(1.3, 44_100), 44_100, "ipod", codec="aac"),
    "webm": lambda: with_av(tone(1.3, 48_000), 48_000, "webm", codec="libopus"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_keeps_its_timing_and_pitch(name: str) -> None:
    output, model = decode(FILES[name]())
    # Lossy coders may add up to one frame of their own.
    assert len(output) / SAMPLE_RATE == pytest.approx(1.3, abs=0.03)
    assert len(model) / MODEL_RATE == pytest.approx(len(output) / SAMPLE_RATE, abs=0.001)
    for samples, rate in ((output, SAMPLE_RATE), (model, MODEL_RATE)):
        middle = samples[rate // 4 : rate // 4 + rate // 2]
        peak = np.abs(np.fft.rfft(middle)).argmax() * 2
        assert peak == pytest.approx(440, abs=2)
        assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.15)


def test_channels_are_mixed() -> None:
    left, right = tone(0.5, 16_000), tone(0.5, 16_000, 660.0)
    stereo = np.stack([left, right], axis=1)
    spectrum = np.abs(np.fft.rfft(decode(with_soundfile(stereo, 16_000, "WAV"))[1]))
    assert set(spectrum.argsort()[-2:] * 2) == {440, 660}


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 20_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 44_100, 48_000, 192_000]),
)
def test_both_rates_agree_on_the_length(samples: int, rate: int) -> None:
    blob = with_soundfile(np.zeros(samples, np.float32), rate, "WAV")
    if samples * MODEL_RATE / rate < 1:
        return  # shorter than one sample of the model: see the next test
    output, model = decode(blob)
    assert abs(len(output) - samples * SAMPLE_RATE / rate) <= 1
    assert abs(len(model) - samples * MODEL_RATE / rate) <= 1


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        with_soundfile(np.zeros(0, np.float32), 16_000, "WAV"),
        with_soundfile(np.zeros(1, np.float32), 192_000, "WAV"),
    ],
    ids=["no bytes", "no samples", "less than a sample of the model"],
)
def test_no_sound_is_empty_audio(blob: bytes) -> None:
    assert code_of(blob) == "empty_audio"


NOISE = np.random.default_rng(0).bytes(20_000)


@pytest.mark.parametrize(
    "blob",
    [
        b"hello world" * 50,
        NOISE,
        bytes(1000),
        b"\xff\xfb" + NOISE,
        b"\0\0\0\x20ftypisom" + NOISE,
        b"\x1a\x45\xdf\xa3" + NOISE,
        b"\x89PNG\r\n\x1a\n" + NOISE,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        FILES["m4a"]()[:3000],
        FILES["wav"]()[:20],
    ],
    ids=["text", "noise", "zeros", "mp3-ish", "mp4-ish", "webm-ish", "png", "playlist", "cut m4a",
         "cut wav"],
)  # fmt: skip
def test_other_files_are_unsupported_media(blob: bytes) -> None:
    assert code_of(blob) == "unsupported_media"


def test_a_video_without_sound_is_unsupported_media() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    assert code_of(file.getvalue()) == "unsupported_media"


@pytest.mark.parametrize("rate", [1_000, 1_000_000])
def test_absurd_rates_are_unsupported_media(rate: int) -> None:
    blob = with_soundfile(np.zeros(1000, np.float32), rate, "WAV")
    assert code_of(blob) == "unsupported_media"


@pytest.mark.parametrize("name", FILES)
def test_a_stated_length_beyond_the_limit_fails_before_decoding(name: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_audio(FILES[name](), SAMPLE_RATE, 1.0)
    assert caught.value.code == "too_large"
    assert "1 s" in caught.value.detail


def test_a_truncated_wav_is_read_to_its_end() -> None:
    blob = FILES["wav"]()
    output, _ = decode(blob[: len(blob) // 2])
    assert len(output) / SAMPLE_RATE == pytest.approx(0.65, abs=0.01)


def test_samples_that_are_not_finite_are_silenced() -> None:
    pcm = tone(0.5, 16_000)
    pcm[100:200] = np.nan
    pcm[200] = np.inf
    pcm[201] = -1e30
    output, model = decode(with_soundfile(pcm, 16_000, "WAV", subtype="FLOAT"))
    assert np.isfinite(output).all() and np.isfinite(model).all()
    assert np.abs(model).max() < 2


def test_a_long_file_is_decoded_incrementally() -> None:
    minutes = 10
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", 36 + minutes * 60 * 32_000, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16,
        b"data", minutes * 60 * 32_000,
    )  # fmt: skip
    speech = decode_audio(header + bytes(minutes * 60 * 32_000), SAMPLE_RATE, 1800)
    next(speech.blocks)
    tracemalloc.start()
    try:
        count = sum(len(block.model) for block in speech.blocks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count > (minutes * 60 - 1) * MODEL_RATE
    assert peak < 4e6


@pytest.mark.parametrize("ahead_ms", [900, 30_000, -1])
def test_a_damaged_timestamp_is_no_pause(ahead_ms: int) -> None:
    blob = FILES["webm"]()
    blocks = [match.start() for match in re.finditer(rb"\xa3(?=..?\x81..\x80)", blob, re.DOTALL)]
    at = blob.index(b"\x81", blocks[20]) + 1  # after the number of the track
    changed = blob[:at] + struct.pack(">h", ahead_ms) + blob[at + 2 :]
    assert len(decode(changed)[1]) / MODEL_RATE == pytest.approx(1.3, abs=0.05)


def test_a_file_that_is_joined_to_another_may_be_broken() -> None:
    whole, other = FILES["mp3"](), FILES["m4a"]()
    assert len(decode(whole + b"ID3" + NOISE)[1]) / MODEL_RATE == pytest.approx(1.3, abs=0.1)
    assert len(decode(other + other[:3000])[1]) / MODEL_RATE == pytest.approx(1.3, abs=0.05)
