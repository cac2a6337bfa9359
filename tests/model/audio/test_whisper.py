"""What Whisper's encoder is fed, and which of its states a video frame hears."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.whisper import (
    WhisperConfig,
    WhisperEncoder,
    audio_tokens,
    frame_count,
    log_mel,
    mel_filters,
    speech_states,
    state_indices,
)

TINY = WhisperConfig(mels=80, positions=25, width=8, heads=2, layers=2)  # half a second


def encoder() -> WhisperEncoder:
    torch.manual_seed(0)
    return WhisperEncoder(TINY).eval().requires_grad_(False)


def tone(hertz: float, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(16_000 * seconds)) / 16_000)).astype(
        np.float32
    )


def test_filters_have_equal_area_and_follow_slaneys_scale() -> None:
    filters = mel_filters(80)
    assert filters.shape == (80, 201)
    # 200 / 3 Hz a mel below 1 kHz, 6.4 times in 27 mels above
    mels = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 82)[1:-1]
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    peaks = filters.argmax(axis=1) * 40.0
    assert np.abs(peaks - hertz).max() <= 40.0
    wide = filters[50:]  # wide enough for the bins to show their area
    np.testing.assert_allclose(wide.sum(axis=1) * 40.0, 1.0, atol=0.05)


def test_a_tone_is_where_it_belongs_and_levels_are_relative_to_the_loudest() -> None:
    mel = log_mel(tone(2000.0))
    assert mel.shape == (80, 100)
    filters = mel_filters(80)
    assert int(mel[:, 50].argmax()) == int(filters[:, 50].argmax())
    assert float(mel.max() - mel.min()) == pytest.approx(2.0, abs=1e-5)  # 8 of 4 decades
    quiet = log_mel(tone(2000.0, level=0.05))
    assert float((mel - quiet).max()) == pytest.approx(0.5, abs=1e-3)  # 20 dB are 2 of 4 decades


def test_states_are_fifty_a_second_at_every_depth() -> None:
    states = speech_states(encoder(), tone(300.0, 0.4))
    assert states.shape == (20, 3, 8)


def test_long_speech_is_encoded_in_pieces_of_the_encoders_length() -> None:
    net, sound = encoder(), np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    states = speech_states(net, sound)
    assert len(states) == 62
    mel = log_mel(sound)
    torch.testing.assert_close(states[:25], net(mel[None, :, :50])[0])
    torch.testing.assert_close(states[25:50], net(mel[None, :, 50:100])[0])


@settings(max_examples=50)
@given(st.integers(1, 400), st.floats(12, 60), st.integers(1, 100))
def test_a_frames_states_surround_it(states: int, fps: float, frames: int) -> None:
    heard = state_indices(states, frames, fps)
    assert heard.shape == (frames, 10)
    assert int(heard.min()) >= 0 and int(heard.max()) < states
    for i, row in enumerate(heard.tolist()):
        own = int(i * 50 / fps)
        assert row[4] == min(own, states - 1)
        assert row == sorted(row) and row[9] - row[0] <= 9


def test_tokens_are_in_time_first() -> None:
    states = torch.arange(12.0)[:, None, None] + 100 * torch.arange(5.0)[:, None] + torch.zeros(3)
    tokens = audio_tokens(states, fps=25)
    assert tokens.shape == (frame_count(12, 25), 50, 3)
    assert tokens[3, :6, 0].tolist() == [2, 102, 202, 302, 402, 3]
    assert torch.equal(audio_tokens(states, 25, frames=2), tokens[:2])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="N > 200"):
        log_mel(np.zeros(200, np.float32))
    with pytest.raises(ValueError, match="26 states of sound, allowed: 25"):
        encoder()(torch.zeros(1, 80, 52))
    with pytest.raises(ValueError, match="states = 0"):
        state_indices(0, 3, 25)
