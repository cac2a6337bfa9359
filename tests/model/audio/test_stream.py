"""Streaming sound: the same windows whatever the pieces, the right number of frames, no growth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.log_mel import (
    HOP,
    HOPS_PER_FRAME,
    LOOKAHEAD,
    MEL_BINS,
    PAST_SAMPLES,
    PREFIX,
    ROW_DIM,
    WINDOW_FRAMES,
    log_mel,
    mel_filters,
    power_spectrum,
    silence_row,
)
from model.audio.stream import SpeechStream, windows_of
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Floats, Window


def speechlike(samples: int, seed: int = 0) -> Floats:
    """Modulated noise and a hum: something in every band, loud and soft parts."""
    random = np.random.default_rng(seed)
    t = np.arange(samples) / SAMPLE_RATE
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * t)
    sound = envelope * (0.1 * random.standard_normal(samples) + 0.2 * np.sin(2 * np.pi * 140 * t))
    return np.asarray(sound, np.float32)


def assert_same(a: list[Window], b: list[Window]) -> None:
    assert [(w.index, w.frames) for w in a] == [(w.index, w.frames) for w in b]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.features, other.features)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 40_000),
    cuts=st.lists(st.integers(0, 40_000), max_size=12),
    restore_at=st.integers(0, 12),
)
def test_any_chunking_and_a_restore_in_between_give_bit_same_windows(
    samples: int, cuts: list[int], restore_at: int
) -> None:
    sound = speechlike(samples)
    stream, made = SpeechStream(), list[Window]()
    for i, piece in enumerate(np.split(sound, sorted(min(c, samples) for c in cuts))):
        if i == restore_at:
            stream = SpeechStream.restore(stream.state())
        stream.push(piece)
        made += stream.take_windows(len(made))
    stream.finish()
    assert_same(made + stream.take_windows(len(made)), windows_of(sound))


@given(samples=st.integers(1, 60_000))
@settings(max_examples=25, deadline=None)
def test_frames_are_the_speech_rounded_up(samples: int) -> None:
    windows = windows_of(np.zeros(samples, np.float32))
    assert sum(w.frames for w in windows) == -(-samples // SAMPLES_PER_FRAME)
    assert [w.index for w in windows] == list(range(len(windows)))
    assert all(w.features.shape == (WINDOW_FRAMES, ROW_DIM) for w in windows)
    assert all(w.frames == HOP for w in windows[:-1])


def test_windows_overlap_as_their_shape_says() -> None:
    windows = windows_of(speechlike(48_000))
    for now, after in pairwise(windows):
        np.testing.assert_array_equal(now.features[HOP:], after.features[:-HOP])
    np.testing.assert_array_equal(windows[0].features[:PREFIX], [silence_row()] * PREFIX)


def test_a_window_comes_with_the_samples_that_complete_it() -> None:
    needed = (HOP + LOOKAHEAD) * SAMPLES_PER_FRAME + PAST_SAMPLES
    stream = SpeechStream()
    stream.push(speechlike(needed - 1))
    assert stream.take_windows() == []
    stream.push(np.zeros(1, np.float32))
    assert len(stream.take_windows()) == 1
    assert (LOOKAHEAD * SAMPLES_PER_FRAME + PAST_SAMPLES) / SAMPLE_RATE <= 0.2


def test_live_rows_equal_the_spectra_that_training_uses() -> None:
    sound = speechlike(3 * SAMPLE_RATE)
    spectra = power_spectrum(np.pad(sound, PAST_SAMPLES))
    assert len(spectra) == 75 * HOPS_PER_FRAME
    rows = log_mel(spectra).reshape(75, ROW_DIM)
    windows = windows_of(sound)
    live = np.concatenate([w.features[PREFIX : PREFIX + w.frames] for w in windows])
    np.testing.assert_allclose(live, rows, atol=2e-4)


def test_a_sound_shows_at_its_own_frame_and_frequency() -> None:
    sound = np.zeros(SAMPLE_RATE, np.float32)
    burst = slice(10 * SAMPLES_PER_FRAME, 11 * SAMPLES_PER_FRAME)
    t = np.arange(SAMPLES_PER_FRAME) / SAMPLE_RATE
    sound[burst] = 0.5 * np.sin(2 * np.pi * 1000 * t)
    windows = windows_of(sound)
    rows = np.concatenate([w.features[PREFIX : PREFIX + w.frames] for w in windows])
    assert rows.mean(1).argmax() == 10
    bins = np.arange(257) * SAMPLE_RATE / 512
    loudest = rows[10].reshape(HOPS_PER_FRAME, MEL_BINS).mean(0).argmax()
    centre = (bins @ mel_filters())[loudest]
    assert abs(centre - 1000) < 60


def test_state_stays_small_over_ten_minutes() -> None:
    stream = SpeechStream()
    piece = speechlike(SAMPLE_RATE)
    stream.push(piece)
    stream.take_windows()
    early = len(stream.state())
    for _ in range(599):
        stream.push(piece)
        stream.take_windows()
    assert abs(len(stream.state()) - early) < 20_000
    assert len(stream.state()) < 60_000


def test_what_is_no_speech_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        SpeechStream().finish()
    with pytest.raises(ValueError, match="shape"):
        SpeechStream().push(np.zeros((2, 100), np.float32))
    with pytest.raises(ValueError, match="finite"):
        SpeechStream().push(np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="not a packed"):
        SpeechStream.restore(b"nonsense")
    stream = SpeechStream()
    stream.push(np.zeros(10, np.float32))
    stream.finish()
    with pytest.raises(ValueError, match="finish"):
        stream.push(np.zeros(10, np.float32))
