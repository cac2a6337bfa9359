"""The differential measure: whatever ffmpeg decodes whole is decoded, at its length and level."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from media.decode import MODEL_RATE, Samples, decode_audio
from media.errors import MediaError
from media.fmp4 import SAMPLE_RATE
from tests.media import odd_sounds, sounds
from tests.media.sounds import Sound

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg makes the sounds")

KINDS: dict[str, Callable[[], Iterable[Sound]]] = {
    **{family: lambda family=family: sounds.plain(family) for family, _ in sounds.families()},
    "joined": sounds.joined,
    "changing": sounds.changing,
    "cut": sounds.cut,
    "flipped": sounds.flipped,
    "odd": odd_sounds.odd_sounds,
}
_STEP = MODEL_RATE // 20


@pytest.fixture(scope="module")
def speech() -> Samples:
    return soundfile.read(sounds.SPEECH, dtype="float32")[0][: round(sounds.SECONDS * MODEL_RATE)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sound_keeps_its_length_and_level(kind: str, speech: Samples) -> None:
    made = list(KINDS[kind]())
    faults = {sound.name: fault for sound in made if (fault := fault_of(sound, speech))}
    assert not faults, f"{len(faults)} of {len(made)}"


def fault_of(sound: Sound, speech: Samples) -> str:
    """What is wrong with the decoded ``sound``; empty if nothing is."""
    try:
        blocks = list(decode_audio(sound.blob, SAMPLE_RATE, 60.0).blocks)
    except MediaError as error:
        return error.detail
    output = np.concatenate([block.output for block in blocks])
    model = np.concatenate([block.model for block in blocks])
    begin = round(sound.begin_s * MODEL_RATE)
    right = speech[begin : begin + round(sound.seconds * MODEL_RATE)].copy()
    if sound.paused:
        right[MODEL_RATE : 2 * MODEL_RATE] = 0
    seconds, level = len(model) / MODEL_RATE, decibels(model) - decibels(right)
    if abs(seconds - sound.seconds) > sound.within_s:
        return f"{seconds:.3f} s"
    if abs(len(output) / SAMPLE_RATE - seconds) > 1e-4:
        return f"{len(output) / SAMPLE_RATE:.4f} s beside {seconds:.4f} s"
    if sound.damaged:
        return ""
    if abs(level) > (1 if sound.within_s < 1 else 2):
        return f"{level:+.2f} dB"
    # Coders add up to a tenth of a second before the sound.
    lags = range(0, MODEL_RATE // 10, 200)
    if sound.within_s > 0.2 or any(alike(model, right, late=late) > 0.9 for late in lags):
        return ""
    return "another sound"


def decibels(pcm: Samples) -> float:
    return float(10 * np.log10(np.square(pcm, dtype=np.float64).mean() + 1e-12))


def alike(pcm: Samples, right: Samples, *, late: int) -> float:
    """The correlation of levels, when ``pcm`` comes ``late`` samples later."""
    mine, theirs = levels(pcm[late:]), levels(right)
    count = min(len(mine), len(theirs))
    return float(np.corrcoef(mine[:count], theirs[:count])[0, 1])


def levels(pcm: Samples) -> Samples:
    pieces = pcm[: len(pcm) // _STEP * _STEP].reshape(-1, _STEP)
    return np.sqrt(np.square(pieces).mean(axis=1))


REFUSED = {
    "wma": "-c:a wmav2 .wma",
    "avi": "-c:a libmp3lame .avi",
    "flv": "-c:a aac -ar 44100 .flv",
    "ts": "-c:a aac .ts",
    "mpg": "-c:a mp2 .mpg",
    "ac3": "-c:a ac3 .ac3",
    "wv": "-c:a wavpack .wv",
    "tta": "-c:a tta .tta",
    "voc": "-c:a pcm_s16le .voc",
    "nut": "-c:a aac .nut",
    "sox": "-c:a pcm_s32le .sox",
    "wma in mkv": "-c:a wmav2 .mkv",
    "wma in wav": "-c:a wmav2 .wav",
}


def test_formats_that_are_not_promised_are_refused_before_ffmpeg_opens_them() -> None:
    for name, blob in sounds.encoded(REFUSED).items():
        with pytest.raises(MediaError, match="expected") as caught:
            decode_audio(blob, SAMPLE_RATE, 60.0)
        assert caught.value.code == "unsupported_media", name


CASES = {
    "changes_within.mkv": None,
    "codec_none.m4a": None,
    "webm_unknown_codec.webm": None,
    "crash_channels_R_L.mov": 0.1,
}


def test_collected_cases() -> None:
    """Three seconds, but for those that nothing can decode."""
    place = os.environ.get("FADA_TEST_CASES")
    if not place:
        pytest.skip("FADA_TEST_CASES is not set")
    for path in sorted(Path(place).iterdir()):
        if path.suffix in (".jpg", ".png"):
            continue
        expected = CASES.get(path.name, 3.0)
        try:
            blocks = list(decode_audio(path.read_bytes(), SAMPLE_RATE, 60.0).blocks)
        except MediaError as error:
            assert (expected, error.code) == (None, "unsupported_media"), path.name
            continue
        model = np.concatenate([block.model for block in blocks])
        assert len(model) / MODEL_RATE == pytest.approx(expected, abs=0.05), path.name
        assert -22 < decibels(model) < -13, path.name
