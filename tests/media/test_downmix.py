from __future__ import annotations

import numpy as np
import pytest

from media.downmix import Downmix, Limiter, Samples

RATE = 16_000


def noise(seed: int, seconds: float = 1.0) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def mixed(channels: list[Samples], names: tuple[str, ...] = ("FL", "FR")) -> Samples:
    mix = Downmix(names)
    blocks = np.split(np.stack(channels), range(4000, len(channels[0]), 4000), axis=1)
    return np.concatenate([mix(block) for block in blocks])


def level(pcm: Samples) -> float:
    return float(20 * np.log10(np.sqrt(np.square(pcm).mean()) / 0.1))


@pytest.mark.parametrize("right", [1.0, 0.5, 0.0, -0.5, -0.9, -1.0])
def test_a_voice_keeps_its_level_whatever_the_other_channel_has_of_it(right: float) -> None:
    voice = noise(0)
    assert level(mixed([voice, np.float32(right) * voice])) == pytest.approx(0, abs=0.1)


def test_equal_channels_of_opposite_phases_are_passed_through() -> None:
    """Though now the one, now the other is louder by a rounding."""
    voice = noise(0)
    mono = mixed([voice + np.float32(0.5), np.float32(0.5) - voice])
    assert np.abs(mono) == pytest.approx(np.abs(voice), abs=1e-5)


def test_equal_channels_are_passed_through() -> None:
    voice = noise(0)
    assert mixed([voice, voice]) == pytest.approx(voice, abs=1e-6)


def test_voices_that_take_turns_are_equally_loud() -> None:
    first, second, rest = noise(0), noise(1), np.zeros(RATE, np.float32)
    mono = mixed([np.concatenate([first, rest]), np.concatenate([rest, second])])
    assert level(mono[:RATE]) == pytest.approx(0, abs=0.1)
    assert level(mono[RATE:]) == pytest.approx(0, abs=0.1)


def test_low_frequency_effects_are_left_out() -> None:
    voice, rumble = noise(0), 8 * noise(1)
    none = np.zeros_like(voice)
    names = ("FL", "FR", "FC", "LFE", "SL", "SR")
    mono = mixed([none, none, voice, rumble, none, none], names)
    assert mono == pytest.approx(voice, abs=1e-6)


def test_a_change_of_the_mix_is_no_click() -> None:
    """Opposite phases that begin after half a second."""
    time = np.arange(RATE) / RATE
    voice = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    sign = np.where(time < 0.5, 1, -3).astype(np.float32)
    mono = mixed([voice, sign * voice])
    assert np.abs(np.diff(mono)).max() < 1.6 * np.abs(np.diff(3 * voice)).max()


def test_the_limiter_leaves_quiet_sound_alone() -> None:
    voice = noise(0)
    assert Limiter()(voice) is voice


def test_the_limiter_keeps_the_shape_of_what_is_too_loud() -> None:
    time = np.arange(RATE) / RATE
    loud = (1.8 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    limit = Limiter()
    out = np.concatenate([limit(block) for block in np.split(loud, 4)])
    assert np.abs(out).max() <= 1.0
    middle = out[4000:12_000]  # a clipped sine has a third harmonic of a tenth
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum[300] < 0.01 * spectrum[100]
