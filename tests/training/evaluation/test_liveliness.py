"""Activity of faces and their fit to prosody, on motion and sound made for the purpose."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTION_COUNT, ACTIONS
from model.types import SAMPLE_RATE, Floats
from training.evaluation.liveliness import (
    FaceMotion,
    ProsodyFit,
    activity,
    blink_onsets,
    blinks_at_phrase_ends,
    drift,
)
from training.evaluation.prosody import Prosody, prosody

FRAMES = 200


def speech(seed: int) -> Floats:
    """Syllables of a buzzing voice, a few of them louder and higher, with a pause in the middle."""
    random = np.random.default_rng(seed)
    parts = []
    for syllable in range(40):
        accented = random.random() < 0.3
        time_s = np.arange(3200) / SAMPLE_RATE
        hertz = 150.0 if accented else 115.0
        voice = sum(np.sin(2 * np.pi * n * hertz * time_s) / n for n in range(1, 12))
        level = 0.0 if 18 <= syllable < 21 else 0.12 if accented else 0.05
        parts.append(level * voice * np.hanning(3200))
    return np.concatenate(parts).astype(np.float32)


def still() -> NDArray[np.float32]:
    return np.full((FRAMES, ACTION_COUNT), 0.1, np.float32)


def nodding(to: Prosody, seed: int) -> FaceMotion:
    """A head that nods on the accents of ``to`` while it wanders."""
    wandering = np.random.default_rng(seed).normal(0, 0.002, (FRAMES, 3)).cumsum(0)
    wandering[:, 0] += 0.03 * np.roll(to.accents, 3)
    return FaceMotion(still(), wandering.astype(np.float32))


def test_prosody_finds_accents_pauses_and_the_pitch() -> None:
    found = prosody(speech(0))
    assert len(found.loudness) == FRAMES
    assert found.speaking[:85].all() and not found.speaking[92:103].any()
    assert found.phrase_ends.tolist() == pytest.approx([90, FRAMES], abs=2)
    high = found.pitch[found.accent_at]
    assert np.median(high) - np.median(found.pitch) == pytest.approx(4.6, abs=0.5)  # 150 to 115 Hz


def test_motion_that_follows_its_sound_fits_it_and_chance_does_not() -> None:
    sounds = [prosody(speech(seed)) for seed in range(20)]
    own = [nodding(s, seed) for seed, s in enumerate(sounds)]
    others = [nodding(s, seed) for seed, s in enumerate(reversed(sounds))]
    good = ProsodyFit(own[:10], sounds[:10])(own[10:], sounds[10:])
    assert good["p"] < 0.01 and good["accents r"] > 0.3
    assert ProsodyFit(others[:10], sounds[:10])(others[10:], sounds[10:])["p"] > 0.05


def test_activity_is_in_degrees_and_coefficients() -> None:
    wave = np.sin(2 * np.pi * np.arange(FRAMES) / 50)
    face = FaceMotion(still(), np.zeros((FRAMES, 3), np.float32))
    face.rotation[:, 1] = np.radians(2) * wave
    face.coefficients[:, ACTIONS.index("mouthSmileLeft")] += (0.1 * wave).clip(0)
    figures = activity(face)
    assert figures["yaw °"] == pytest.approx(np.sqrt(2), rel=0.02)
    assert figures["pitch °"] == figures["blinks/min"] == 0
    assert figures["head °/s"] == pytest.approx(np.sqrt(2) * np.pi, rel=0.05)
    assert 0 < figures["smile"] < 0.05


def test_blinks_are_counted_once_each_and_placed_by_phrase() -> None:
    face = FaceMotion(still(), np.zeros((FRAMES, 3), np.float32))
    lids = [i for i, name in enumerate(ACTIONS) if name.startswith("eyeBlink")]
    for frame in (30, 92):
        face.coefficients[frame : frame + 4, lids] = np.array([[0.6], [1.0], [0.3], [0.6]])
    assert blink_onsets(face).tolist() == [30, 92]
    shares = blinks_at_phrase_ends([face], [prosody(speech(0))])
    assert shares["blinks at phrase ends"] == 0.5
    assert 0.1 < shares["by chance"] < 0.3


def test_drift_tells_a_head_that_leaves_from_one_that_returns() -> None:
    away = np.zeros((5 * 1500, 3), np.float32)
    away[:, 0] = np.radians(np.linspace(0, 5, len(away)))
    leaves = drift(FaceMotion(np.zeros((len(away), ACTION_COUNT), np.float32), away))
    assert leaves["drift, ° in ten minutes"] == pytest.approx(10, rel=0.05)
