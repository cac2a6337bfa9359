"""Augment spectra with other voices, rooms and microphones; the result is log-mel rows.

Only one male speaker has tracked motion, and a network trained on those spectra alone would not
follow other voices. So most windows get another vocal tract (the envelope stretched along
frequency, Jaitly & Hinton 2013, "Vocal tract length perturbation"), another pitch (the fine
structure stretched independently and amplified, as higher voices resolve their harmonics), another
microphone (smooth random equaliser, band limit), room, level, background noise and music.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.audio.log_mel import (
    CENTRE_DB,
    FLOOR_POWER,
    HOPS_PER_FRAME,
    SPECTRUM_BINS,
    SPREAD_DB,
    mel_filters,
)
from training.data.music import Music

TRACT = (0.83, 1.22)  # factor of formant frequencies
PITCH = (0.75, 2.3)  # factor of the distance between harmonics
GAIN_DB = (-26.0, 6.0)
NOISE_DB = (-95.0, -46.0)  # mean power of the background, 0 dB at full scale
MIN_SNR_DB = 12.0
MUSIC_SHARE = 0.2  # of the augmented windows
MUSIC_SNR_DB = (6.0, 26.0)
MUSIC_ALONE_DB = (-70.0, -30.0)  # without speech
_SILENCE_DB = -80.0  # a window below it holds no speech
UNCHANGED_SHARE = 0.35  # of windows, in the speaker's own voice
_ENVELOPE_BINS = 3.5  # Gaussian width that separates formants from harmonics, 110 Hz


def _smoother() -> Tensor:
    """(bins, bins) Gaussian blur along frequency, normalised at the edges."""
    bins = torch.arange(SPECTRUM_BINS, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((bins[:, None] - bins) / _ENVELOPE_BINS) ** 2)
    return kernel / kernel.sum(0)


class VoiceAugmenter:
    """Draws a voice and a room for every window of a batch; holds constant tables only."""

    def __init__(self) -> None:
        self._smooth = _smoother()
        self._music = Music()
        self._mel = torch.from_numpy(mel_filters().copy())
        self._axis = torch.linspace(0, 1, SPECTRUM_BINS)
        self._mel_axis = self._axis @ self._mel
        # Noise in a band averages over the bins of its filter.
        self._noise_spread = (self._mel**2).sum(0).sqrt()

    def __call__(
        self, spectra: Tensor, background: Tensor, sounding: Tensor, *, random: torch.Generator
    ) -> Tensor:
        """Rows (B, T, ROW_DIM) of ``spectra`` (B, T·4, bins), log power.

        ``background`` (B, bins): log power of each recording's noise. ``sounding`` (B, T·4): False
        where there is no recording, e.g. before a session's first sample.
        """
        batch = len(spectra)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            drawn = torch.rand(batch, *(shape or (1, 1)), generator=random)
            return low + (high - low) * drawn

        changed = uniform(0, 1) > UNCHANGED_SHARE
        logs = self._denoised(spectra, background, uniform(0, 1) < 0.5)
        which = changed[:, 0, 0].nonzero()[:, 0]
        other = self._other_voice(logs[which], random) + self._equaliser(len(which), random)
        # Room and noise act on bands, which are a quarter of the bins, at no loss.
        bands = logs.index_copy(0, which, other).exp() @ self._mel
        bands = bands * sounding[:, :, None]
        bands = self._room(bands, changed & (uniform(0, 1) < 0.25), uniform(0.4, 0.85))
        bands = bands * 10 ** (uniform(*GAIN_DB) / 10)
        bands = self._accompanied(bands, changed & (uniform(0, 1) < MUSIC_SHARE), random)
        bands = bands + self._noise(bands, sounding, changed, random=random)
        decibels = 10 * torch.log10(bands + FLOOR_POWER)
        rows = (decibels - CENTRE_DB) / SPREAD_DB
        return rows.reshape(batch, -1, HOPS_PER_FRAME * rows.shape[2])

    def _denoised(self, spectra: Tensor, background: Tensor, chosen: Tensor) -> Tensor:
        """Subtract the recording's noise in some windows, so that silence is seen without it."""
        which = chosen[:, 0, 0].nonzero()[:, 0]
        power = spectra[which].exp()
        less = torch.maximum(power - 2.0 * background[which].exp()[:, None], 1e-3 * power)
        return spectra.index_copy(0, which, less.log())

    def _other_voice(self, logs: Tensor, random: torch.Generator) -> Tensor:
        """Stretch envelope and harmonics of ``logs`` (B, T, bins) along frequency by separate
        factors, and scale the harmonics."""
        batch = len(logs)
        draw = torch.rand(3, batch, generator=random)
        tract, pitch = (
            low * (high / low) ** part
            for (low, high), part in zip((TRACT, PITCH), draw[:2], strict=True)
        )
        envelope = logs @ self._smooth
        harmonics = (0.5 + 2.0 * draw[2])[:, None, None] * (logs - envelope)
        return _stretched(envelope, tract) + _stretched(harmonics, pitch)

    def _equaliser(self, batch: int, random: torch.Generator) -> Tensor:
        """(B, 1, bins) log gain: four cosines of ±5 dB each, and a band limit for some."""
        weights = (torch.rand(batch, 4, generator=random) - 0.5) * 10.0
        orders = torch.arange(1, 5)[:, None]
        curve = weights @ torch.cos(math.pi * orders * self._axis)
        cutoff = 0.42 + 1.2 * torch.rand(batch, 1, generator=random)
        curve = curve - 400.0 * (self._axis - cutoff).clamp(min=0, max=0.12)
        return curve[:, None] * (math.log(10) / 10)

    @staticmethod
    def _room(bands: Tensor, chosen: Tensor, decay: Tensor) -> Tensor:
        """Add late reverberation: each hop leaves a tail that falls by ``decay`` every 10 ms."""
        which = chosen[:, 0, 0].nonzero()[:, 0]
        tail = total = bands[which]
        for _ in range(12):
            tail = decay[which] * torch.nn.functional.pad(tail, (0, 0, 1, 0))[:, :-1]
            total = total + 0.25 * tail
        return bands.index_copy(0, which, total)

    def _noise(
        self, bands: Tensor, sounding: Tensor, changed: Tensor, *, random: torch.Generator
    ) -> Tensor:
        """Coloured noise with a periodogram's variance, at most as loud as the SNR allows."""
        batch = len(bands)
        speech = 10 * torch.log10(bands.mean(2).amax(1) + 1e-12)[:, None, None] - MIN_SNR_DB
        level = NOISE_DB[0] + (NOISE_DB[1] - NOISE_DB[0]) * torch.rand(
            batch, 1, 1, generator=random
        )
        level = torch.minimum(level, speech.clamp(min=-75.0))
        tilt = 25.0 * torch.rand(batch, 1, 1, generator=random)
        colour = level - tilt * (self._mel_axis - 0.2)
        # Log-normal, with the mean and about the deviation of a sum of exponentials.
        spread = self._noise_spread
        chance = torch.exp(spread * torch.randn(bands.shape, generator=random) - spread**2 / 2)
        # Half of the sessions start in digital silence, half in the room's noise.
        present = sounding | (torch.rand(batch, 1, generator=random) < 0.5)
        return 10 ** (colour / 10) * chance * (present[:, :, None] & changed)

    def _accompanied(self, bands: Tensor, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Add music under the speech of some windows, or alone: lips must not follow it."""
        which = chosen[:, 0, 0].nonzero()[:, 0]
        draw = torch.rand(2, len(which), 1, 1, generator=random)
        under, alone = (
            low + (high - low) * part
            for (low, high), part in zip((MUSIC_SNR_DB, MUSIC_ALONE_DB), draw, strict=True)
        )
        loudest = 10 * torch.log10(bands[which].mean(2).amax(1) + 1e-12)[:, None, None]
        level = torch.where(loudest < _SILENCE_DB, alone, loudest - under)
        music = 10 ** (level / 10) * self._music(len(which), bands.shape[1], random)
        return bands.index_add(0, which, music)


def _stretched(logs: Tensor, factor: Tensor) -> Tensor:
    """``logs`` (B, T, bins) read at f / ``factor`` (B,), linearly interpolated."""
    source = (torch.arange(SPECTRUM_BINS) / factor[:, None]).clamp(max=SPECTRUM_BINS - 1)
    low = source.floor().long().clamp(max=SPECTRUM_BINS - 2)
    part = (source - low)[:, None]
    low = low[:, None].expand_as(logs)
    return torch.lerp(logs.gather(2, low), logs.gather(2, low + 1), part)
