"""Prosody of speech at video rate: loudness, pitch, pauses and accents, measured on the samples.

For evaluation, and to train `model.motion.cues`, which sees log-mel rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Floats

_LOWEST_HZ, _HIGHEST_HZ = 70.0, 420.0
_VOICED = 0.5  # of the autocorrelation at lag 0
_FAR = 10.0  # semitones from the median
_WINDOW = 800  # samples, 50 ms: three periods of a low voice
_SPEECH_DB = 30.0  # below a speech's loudest frames
_PAUSE_FRAMES = 6  # 0.24 s; shorter silences are stops
_ACCENT_APART = 6  # frames
_ACCENT_WIDTH = 2.5  # frames, a Gaussian's deviation


@dataclass(frozen=True)
class Prosody:
    """A speech's prosody, one value a video frame.

    ``loudness`` in dB; ``pitch`` in semitones over the speech's median, interpolated where nothing
    is voiced; ``speaking`` false in pauses; ``accents`` a bump for each accented syllable, as high
    as it is prominent; ``accent_at`` their frames; ``phrase_ends`` the first frames of pauses.
    """

    loudness: Floats
    pitch: Floats
    speaking: NDArray[np.bool_]
    accents: Floats
    accent_at: NDArray[np.intp]
    phrase_ends: NDArray[np.intp]


def prosody(samples: Floats) -> Prosody:
    """The prosody of ``samples`` (N,) at 16 kHz, for N // 640 frames."""
    frames = len(samples) // SAMPLES_PER_FRAME
    whole = samples[: frames * SAMPLES_PER_FRAME].reshape(frames, -1)
    loudness = 10 * np.log10((whole.astype(np.float64) ** 2).mean(1) + 1e-9)
    speaking = _without_short(loudness > np.percentile(loudness, 95) - _SPEECH_DB)
    pitch = _pitch(samples)
    prominence = _prominence(loudness, pitch, speaking)
    accent_at = _peaks(prominence, speaking)
    away = np.arange(frames)[:, None] - accent_at
    bumps = prominence[accent_at] * np.exp(-0.5 * (away / _ACCENT_WIDTH) ** 2)
    starts = np.flatnonzero(speaking[:-1] & ~speaking[1:]) + 1
    ends = np.append(starts, frames) if frames and speaking[-1] else starts
    return Prosody(
        loudness=loudness.astype(np.float32),
        pitch=pitch.astype(np.float32),
        speaking=speaking,
        accents=bumps.max(1, initial=0.0).astype(np.float32),
        accent_at=accent_at,
        phrase_ends=ends,
    )


def smoothed(values: NDArray[np.floating], deviation: float) -> NDArray[np.float64]:
    """``values`` (T, ...) under a Gaussian of ``deviation`` frames; ends are continued."""
    reach = int(4 * deviation) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    widths = [(reach, reach), *[(0, 0)] * (values.ndim - 1)]
    padded = np.pad(values.astype(np.float64), widths, mode="edge")
    filtered = np.apply_along_axis(np.convolve, 0, padded, kernel, "valid")
    return np.asarray(filtered, np.float64)


def _without_short(active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``active`` with its gaps shorter than a pause filled."""
    filled = active.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[1], active.astype(np.int8), [1]])))
    for first, stop in edges.reshape(-1, 2):
        if stop - first < _PAUSE_FRAMES and first > 0 and stop < len(active):
            filled[first:stop] = True
    return filled


def voiced_pitch(samples: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(T,) semitones over 1 Hz, and whether a frame is voiced, by autocorrelation (Rabiner 1977).

    Where a frame is not voiced, its pitch means nothing.
    """
    frames = len(samples) // SAMPLES_PER_FRAME
    before = (_WINDOW - SAMPLES_PER_FRAME) // 2
    padded = np.pad(samples.astype(np.float64), (before, _WINDOW))
    views = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::SAMPLES_PER_FRAME][:frames]
    windows = (views - views.mean(1, keepdims=True)) * np.hanning(_WINDOW)
    spectrum = np.abs(np.fft.rfft(windows, 2 * _WINDOW)) ** 2
    correlation = np.fft.irfft(spectrum)[:, :_WINDOW]
    taper = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(_WINDOW), 2 * _WINDOW)) ** 2)[:_WINDOW]
    lags = np.arange(int(SAMPLE_RATE / _HIGHEST_HZ), int(SAMPLE_RATE / _LOWEST_HZ))
    share = correlation[:, lags] / taper[lags] / (correlation[:, :1] / taper[0] + 1e-9)
    # Multiples of the period correlate as well: a small cost of long lags prefers the first.
    best = (share - 0.02 * np.log2(lags / lags[0])).argmax(1)
    semitones = 12 * np.log2(SAMPLE_RATE / lags[best])
    voiced = share[np.arange(frames), best] > _VOICED
    if voiced.any():  # an octave off is an error
        voiced &= np.abs(semitones - np.median(semitones[voiced])) < _FAR
    return semitones, voiced


def _pitch(samples: Floats) -> NDArray[np.float64]:
    """(T,) semitones over the median, without gaps."""
    semitones, voiced = voiced_pitch(samples)
    at = np.flatnonzero(voiced)
    if len(at) < 2:
        return np.zeros(len(semitones))
    known = semitones[at] - np.median(semitones[at])
    middle = np.median(np.stack([known, np.roll(known, 1), np.roll(known, -1)]), axis=0)
    return np.interp(np.arange(len(semitones)), at, middle)


def _prominence(
    loudness: NDArray[np.float64], pitch: NDArray[np.float64], speaking: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(T,) how far a frame stands out of the half second around it, in deviations, 0 in pauses."""
    total = np.zeros(len(loudness))
    for track, weight in ((loudness, 0.6), (pitch, 0.4)):
        floored = np.maximum(track, track.max(initial=0.0) - _SPEECH_DB)
        local = smoothed(floored, 1.5) - smoothed(floored, 12.0)
        total += weight * local / (local[speaking].std() + 1e-6 if speaking.any() else 1.0)
    return np.where(speaking, total.clip(0), 0.0)


def _peaks(prominence: NDArray[np.float64], speaking: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Frames of local maxima, the most prominent first where two are too near, in order."""
    inner = (prominence[1:-1] > prominence[:-2]) & (prominence[1:-1] >= prominence[2:])
    found = np.flatnonzero(inner) + 1
    found = found[prominence[found] > 0.5]
    kept: list[int] = []
    for frame in found[np.argsort(-prominence[found], kind="stable")].tolist():
        if all(abs(frame - other) >= _ACCENT_APART for other in kept):
            kept.append(frame)
    return np.array(sorted(kept), np.intp)
