"""Whisper as a stream: rows that no chunking changes, of the sound around their frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.frontend import AudioWindowSpec, samples_per_row
from model.audio.stream import SpeechStream, windows_of
from model.audio.whisper import (
    WhisperConfig,
    WhisperEncoder,
    WhisperRows,
    audio_tokens,
    speech_states,
)
from model.types import FPS, SAMPLES_PER_FRAME, Floats, Window

PAST = 2


def rows_of(positions: int) -> WhisperRows:
    torch.manual_seed(0)
    encoder = WhisperEncoder(WhisperConfig(80, positions, 8, 2, 2))
    torch.nn.init.normal_(encoder.positions)
    return WhisperRows(encoder, PAST)


ROWS = rows_of(100)
WINDOW_SPEC = AudioWindowSpec(ROWS, past=2, hop=3, lookahead=1)


def noise(samples: int, seed: int = 0) -> Floats:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def whole(sound: Floats) -> list[Window]:
    return windows_of(sound, WINDOW_SPEC)


@settings(max_examples=12, deadline=None)
@given(
    samples=st.integers(1, 16_000),
    cuts=st.lists(st.integers(0, 16_000), max_size=6),
    restore_at=st.integers(0, 6),
)
def test_any_chunking_and_a_restore_in_between_give_bit_same_windows(
    samples: int, cuts: list[int], restore_at: int
) -> None:
    sound = noise(samples)
    offline, live = SpeechStream(WINDOW_SPEC), SpeechStream(WINDOW_SPEC)
    made: list[Window] = []
    shown: list[Floats] = []
    for i, piece in enumerate(np.split(sound, sorted(min(c, samples) for c in cuts))):
        if i == restore_at:
            offline = SpeechStream.restore(offline.state(), WINDOW_SPEC)
            live = SpeechStream.restore(live.state(), WINDOW_SPEC)
        offline.push(piece)
        made += offline.take_windows(len(made))
        live.push(piece)
        while not live.missing:
            shown.append(live.window(len(shown), WINDOW_SPEC.hop, rest=False).features)
            live.skip(WINDOW_SPEC.hop)
    offline.finish()
    made += offline.take_windows(len(made))
    expected = whole(sound)
    assert sum(window.frames for window in made) == -(-samples // SAMPLES_PER_FRAME)
    assert [(w.index, w.frames) for w in made] == [(w.index, w.frames) for w in expected]
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
    for features, other in zip(shown, expected, strict=False):
        np.testing.assert_array_equal(features, other.features)
    live.pause()
    frames = len(shown) * WINDOW_SPEC.hop
    assert frames + live.rows == max(frames, -(-samples // SAMPLES_PER_FRAME))


def test_a_row_is_echomimics_tokens_of_that_stretch() -> None:
    frames = samples_per_row(ROWS) // SAMPLES_PER_FRAME
    rows = rows_of(2 * frames)  # the stretch fills the encoder, so nothing is padded
    stretch = noise(samples_per_row(rows))
    tokens = audio_tokens(speech_states(rows._encoder, stretch), FPS, frames)
    assert rows.row_shape == tokens.shape[1:]
    np.testing.assert_allclose(rows.row(stretch), tokens[PAST].numpy(), atol=2e-3, rtol=1e-3)


def test_rows_are_kept_without_loss() -> None:
    row = ROWS.row(noise(samples_per_row(ROWS)))
    np.testing.assert_array_equal(row, row.astype(ROWS.kept_as).astype(np.float32))
    assert np.abs(row - ROWS.silence()).max() > 0.01


def test_a_stream_that_begins_early_knows_the_whole_past() -> None:
    sound, late = noise(20_000), 4
    skip = (late - WINDOW_SPEC.warmup_windows) * WINDOW_SPEC.hop * SAMPLES_PER_FRAME
    expected, early = whole(sound), whole(sound[skip:])
    assert WINDOW_SPEC.warmup_windows == 2
    np.testing.assert_array_equal(
        expected[late].features, early[WINDOW_SPEC.warmup_windows].features
    )
    assert not np.array_equal(
        expected[late - 1].features, early[WINDOW_SPEC.warmup_windows - 1].features
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="samples have shape"):
        ROWS.row(noise(100))
    with pytest.raises(ValueError, match="past_frames = 2 makes 12 states"):
        rows_of(11)
    with pytest.raises(ValueError, match="expected a hop of 1 or more"):
        AudioWindowSpec(ROWS, 2, 0, 1)
