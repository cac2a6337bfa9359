from __future__ import annotations

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.log_mel import HOP, LOOKAHEAD
from model.audio.resampler import Decimator
from model.audio.stream import SpeechStream
from model.types import FPS, Floats

RATE = 48_000


def noise(samples: int) -> Floats:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(0, 5_000), cuts=st.lists(st.integers(0, 5_000), max_size=6))
def test_a_decimator_gives_the_same_samples_in_any_pieces(samples: int, cuts: list[int]) -> None:
    sound, whole, pieces = noise(samples), Decimator(3), Decimator(3)
    parts = np.split(sound, sorted(min(cut, samples) for cut in cuts))
    made = [pieces.resample_chunk(part) for part in parts]
    made.append(pieces.resample_chunk(sound[:0], last=True))
    expected = whole.resample_chunk(sound, last=True)
    assert len(expected) == -(-samples // 3)
    assert np.array_equal(np.concatenate(made), expected)


@pytest.mark.parametrize("hz", [100, 1_000, 6_900])
def test_a_decimator_keeps_what_the_lower_rate_can_hold(hz: int) -> None:
    tone = np.sin(2 * np.pi * hz * np.arange(RATE // 4) / RATE).astype(np.float32)
    made = Decimator(3).resample_chunk(tone)
    assert np.abs(made - soxr.resample(tone, RATE, RATE // 3)[: len(made)])[100:-100].max() < 1e-3


@pytest.mark.parametrize("hz", [8_400, 12_000, 15_900])
def test_a_decimator_lets_nothing_else_through(hz: int) -> None:
    tone = np.sin(2 * np.pi * hz * np.arange(RATE // 4) / RATE).astype(np.float32)
    assert np.abs(Decimator(3).resample_chunk(tone))[100:].max() < 3e-4


def test_a_microphones_window_is_whole_with_the_next_packet() -> None:
    stream, packet = SpeechStream(rate=RATE, output_rate=RATE), bytes(2 * RATE // 50)
    for window in range(6):
        packets = 50 * (window * HOP + HOP + LOOKAHEAD) // FPS + 1
        while stream.missing:
            stream.push_pcm(packet)
            stream.fill()
        assert stream.consumed_bytes == packets * len(packet)
        stream.take(HOP)
