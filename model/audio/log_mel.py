"""Speech as log-mel rows, one row a video frame, with explicit streaming state.

A row holds the log-mel energies of the four 10 ms hops inside its 40 ms video frame; each hop sees
25 ms of sound centred on it, so a row needs 7.5 ms beyond its own frame. Every row is computed
alone, in one fixed shape, so any chunking of the samples gives bit-identical rows.

The values are decibels over full scale with a fixed offset and no running gain control: a gain
that adapts would need seconds to settle, and the first window has none. Robustness to level is
learned instead (training varies the level by 32 dB, see `training.data.augment`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import DTypeLike, NDArray

from model.audio.frontend import AudioWindowSpec
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Floats

HOPS_PER_FRAME = 4
HOP_SAMPLES = SAMPLES_PER_FRAME // HOPS_PER_FRAME
WINDOW_SAMPLES = 400
FFT_SAMPLES = 512
SPECTRUM_BINS = FFT_SAMPLES // 2 + 1
MEL_BINS = 64
ROW_DIM = HOPS_PER_FRAME * MEL_BINS

# The first hop is centred 5 ms after its frame's start; half a window reaches back from there.
PAST_SAMPLES = WINDOW_SAMPLES // 2 - HOP_SAMPLES // 2
ROW_SAMPLES = PAST_SAMPLES + SAMPLES_PER_FRAME + PAST_SAMPLES

_LOWEST_HZ = 60.0
FLOOR_POWER = 1e-9  # -90 dB: below any room's noise, so digital silence is not an outlier
CENTRE_DB = -55.0
SPREAD_DB = 20.0


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """O'Shaughnessy's mel scale, as in HTK."""
    return np.asarray(2595.0 * np.log10(1.0 + hertz / 700.0))


@cache
def mel_filters() -> Floats:
    """(SPECTRUM_BINS, MEL_BINS) triangular filters, each summing to 1."""
    edges = np.linspace(_mel(np.array(_LOWEST_HZ)), _mel(np.array(SAMPLE_RATE / 2.0)), MEL_BINS + 2)
    hertz = np.asarray(np.fft.rfftfreq(FFT_SAMPLES, 1.0 / SAMPLE_RATE), np.float64)
    bins = _mel(hertz)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    # The lowest filters are narrower than a bin and may hit none: they take their nearest one.
    centres = edges[1:-1]
    empty = filters.sum(0) == 0
    filters[np.abs(bins - centres).argmin(0)[empty], np.flatnonzero(empty)] = 1.0
    result: Floats = (filters / filters.sum(0)).astype(np.float32)
    result.setflags(write=False)
    return result


@cache
def _taper() -> Floats:
    """(WINDOW_SAMPLES,) Hann, scaled so that white noise of power p has mean bin power p."""
    taper = np.hanning(WINDOW_SAMPLES + 1)[:-1]
    return np.asarray(taper / np.sqrt((taper**2).sum()), np.float32)


def power_spectrum(samples: Floats) -> Floats:
    """(N,) samples -> (hops, SPECTRUM_BINS) power; hop ``h`` covers samples 160h .. 160h+399."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW_SAMPLES)[::HOP_SAMPLES]
    spectrum = np.fft.rfft(frames * _taper(), FFT_SAMPLES)
    return np.asarray(spectrum.real**2 + spectrum.imag**2, np.float32)


def log_mel(power: Floats) -> Floats:
    """(hops, SPECTRUM_BINS) power -> (hops, MEL_BINS), decibels centred and scaled to about ±2."""
    decibels = 10.0 * np.log10(power @ mel_filters() + np.float32(FLOOR_POWER))
    return np.asarray((decibels - CENTRE_DB) / SPREAD_DB, np.float32)


def row(samples: Floats) -> Floats:
    """(ROW_SAMPLES,) samples around one video frame -> its (ROW_DIM,) features."""
    if samples.shape != (ROW_SAMPLES,):
        raise ValueError(f"samples have shape {samples.shape}, expected ({ROW_SAMPLES},)")
    return log_mel(power_spectrum(samples)).reshape(ROW_DIM)


@cache
def silence_row() -> Floats:
    """(ROW_DIM,) features of digital silence."""
    result = row(np.zeros(ROW_SAMPLES, np.float32))
    result.setflags(write=False)
    return result


class LogMel:
    """These rows as a `model.audio.frontend.AudioFrontend`."""

    row_shape: tuple[int, ...] = (ROW_DIM,)
    kept_as: DTypeLike = np.float32
    past_samples = future_samples = PAST_SAMPLES

    def row(self, samples: Floats) -> Floats:
        """See `row`."""
        return row(samples)

    def silence(self) -> Floats:
        """See `silence_row`."""
        return silence_row()


# The windows of networks that take log-mel rows.
PREFIX = 12  # frames already made: 0.48 s
HOP = 8  # new frames a window: 0.32 s
LOOKAHEAD = 4  # frames of sound beyond them: 0.16 s
WINDOW_FRAMES = PREFIX + HOP + LOOKAHEAD
LOG_MEL = AudioWindowSpec(LogMel(), PREFIX, HOP, LOOKAHEAD)
