"""What nonverbal behaviour follows in speech: loudness and pitch, read from log-mel rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from safetensors.numpy import load_file

from model.audio.log_mel import CENTRE_DB, HOPS_PER_FRAME, MEL_BINS, SPREAD_DB
from model.manifest import WEIGHTS, verified
from model.types import Floats

PITCH_FILE = WEIGHTS / "pitch_readout.safetensors"  # made by `training.pitch_readout`
PITCH_CENTRE, PITCH_SPREAD = 90.0, 6.0  # semitones over 1 Hz: 181 Hz
_PITCH_BANDS = 32  # up to 1.3 kHz: a few harmonics of any voice
_SPEECH_BANDS = slice(6, 52)  # about 250 to 4500 Hz: neither hum nor hiss
_SMOOTHING = np.array([0.1, 0.25, 0.3, 0.25, 0.1], np.float32)


@dataclass(frozen=True)
class SpeechCues:
    """(T,) each, a value a row: ``loudness`` in dB, and ``smooth`` over 0.2 s; ``pitch`` in
    semitones over 1 Hz, meaningful where ``voiced``, a probability, is high."""

    loudness: Floats
    smooth: Floats
    pitch: Floats
    voiced: Floats


def speech_cues(rows: Floats) -> SpeechCues:
    """``rows`` (T, ROW_DIM) of `model.audio.log_mel` -> their cues."""
    decibels = rows.reshape(-1, HOPS_PER_FRAME, MEL_BINS)[:, :, _SPEECH_BANDS] * SPREAD_DB
    power = np.exp((decibels + CENTRE_DB) * np.float32(np.log(10) / 10))
    loudness = np.asarray(10 * np.log10(power.mean(axis=(1, 2)) + 1e-9), np.float32)
    smooth = np.convolve(loudness, _SMOOTHING, "same").astype(np.float32)
    w1, b1, w2, b2 = _pitch_readout()
    pitch, voiced = (np.tanh(pitch_input(rows) @ w1.T + b1) @ w2.T + b2).T
    return SpeechCues(
        loudness=loudness,
        smooth=smooth,
        pitch=PITCH_CENTRE + PITCH_SPREAD * pitch,
        voiced=1 / (1 + np.exp(-voiced)),
    )


def pitch_input(rows: Floats) -> Floats:
    """(T, ROW_DIM) -> (T, 32): a frame's low bands, whatever its level."""
    low = rows.reshape(-1, HOPS_PER_FRAME, MEL_BINS)[:, :, :_PITCH_BANDS].mean(axis=1)
    return np.asarray(low - low.mean(axis=1, keepdims=True), np.float32)


@cache
def _pitch_readout() -> tuple[Floats, ...]:
    """Weights and biases of two layers."""
    tensors = load_file(verified(PITCH_FILE))
    return tuple(tensors[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
