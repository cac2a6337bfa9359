"""Other voices, rooms and microphones from one speaker's spectra.

Knows: log power spectra, hop by hop, and how a voice or a room changes them. Does not know:
motion or networks. Everything acts on a batch of spectra and ends in the live front end's rows.

Only one male speaker has tracked motion, so a network that hears his spectra alone would not
follow others. Each training window is therefore spoken "by somebody else": another vocal tract
(the envelope stretched along frequency, Jaitly & Hinton 2013, "Vocal tract length perturbation"),
another pitch (the fine structure stretched independently and made stronger, as higher voices
resolve their harmonics), another microphone (smooth random equaliser, band limit), room, level and
background noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.audio.features import (
    CENTRE_DB,
    FLOOR_POWER,
    HOPS_PER_FRAME,
    SPECTRUM_BINS,
    SPREAD_DB,
    mel_filters,
)

TRACT = (0.83, 1.22)  # factor on formant frequencies
PITCH = (0.75, 2.3)  # factor on the distance of harmonics
GAIN_DB = (-26.0, 6.0)
NOISE_DB = (-95.0, -46.0)  # mean power of the background, full scale = 0
LEAST_SNR_DB = 12.0
KEPT_AS_IS = 0.35  # share of windows that stay the speaker's own voice
_STEPS = 48
_ENVELOPE_BINS = 3.5  # Gaussian width that separates formants from harmonics, 110 Hz


def _stretch(factor: float) -> Tensor:
    """(bins, bins) linear interpolation: column f reads the spectrum at f / ``factor``."""
    source = (torch.arange(SPECTRUM_BINS) / factor).clamp(max=SPECTRUM_BINS - 1)
    low = source.floor().long().clamp(max=SPECTRUM_BINS - 2)
    part = source - low
    matrix = torch.zeros(SPECTRUM_BINS, SPECTRUM_BINS)
    column = torch.arange(SPECTRUM_BINS)
    matrix[low, column] = 1 - part
    matrix[low + 1, column] = part
    return matrix


def _smoother() -> Tensor:
    """(bins, bins) Gaussian blur along frequency, rows normalised at the edges."""
    bins = torch.arange(SPECTRUM_BINS, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((bins[:, None] - bins) / _ENVELOPE_BINS) ** 2)
    return kernel / kernel.sum(0)


class VoiceAugmenter:
    """Draws a new voice and room for every window of a batch; holds only constant tables."""

    def __init__(self) -> None:
        smooth = _smoother()
        fine = torch.eye(SPECTRUM_BINS) - smooth
        tract = torch.exp(torch.linspace(math.log(TRACT[0]), math.log(TRACT[1]), _STEPS))
        pitch = torch.exp(torch.linspace(math.log(PITCH[0]), math.log(PITCH[1]), _STEPS))
        self._envelopes = torch.stack([smooth @ _stretch(float(f)) for f in tract])
        self._harmonics = torch.stack([fine @ _stretch(float(f)) for f in pitch])
        self._mel = torch.from_numpy(mel_filters().copy())
        self._axis = torch.linspace(0, 1, SPECTRUM_BINS)

    def __call__(
        self, spectra: Tensor, background: Tensor, sounding: Tensor, random: torch.Generator
    ) -> Tensor:
        """Rows (B, T, ROW_DIM) of ``spectra`` (B, T·4, bins), log power, heard elsewhere.

        ``background`` (B, bins) log power of each recording's own noise; ``sounding`` (B, T·4)
        is false where there was no recording at all (before a session's first sample).
        """
        batch = len(spectra)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            drawn = torch.rand(batch, *(shape or (1, 1)), generator=random)
            return low + (high - low) * drawn

        changed = uniform(0, 1) > KEPT_AS_IS
        cleaned = self._denoised(spectra, background, uniform(0, 1) < 0.5)
        logs = torch.where(changed, self._other_voice(cleaned, random), cleaned)
        logs = torch.where(changed, logs + self._equaliser(batch, random), logs)
        power = torch.where(sounding[:, :, None], logs, torch.full((), -30.0)).exp()
        power = self._room(power, changed & (uniform(0, 1) < 0.25), uniform(0.4, 0.85))
        gain = uniform(*GAIN_DB)
        power = power * 10 ** (gain / 10)
        power = power + self._noise(power, sounding, changed, random)
        decibels = 10 * torch.log10(power @ self._mel + FLOOR_POWER)
        rows = (decibels - CENTRE_DB) / SPREAD_DB
        return rows.reshape(batch, -1, HOPS_PER_FRAME * rows.shape[2])

    def _denoised(self, spectra: Tensor, background: Tensor, chosen: Tensor) -> Tensor:
        """Takes the recording's own noise away from some, so that clean silence is known too."""
        power = spectra.exp()
        less = torch.maximum(power - 2.0 * background.exp()[:, None], 1e-3 * power)
        return torch.where(chosen, less.log(), spectra)

    def _other_voice(self, logs: Tensor, random: torch.Generator) -> Tensor:
        batch = len(logs)
        which = torch.randint(_STEPS, (2, batch), generator=random)
        strength = 0.5 + 2.0 * torch.rand(batch, 1, 1, generator=random)
        matrix = self._envelopes[which[0]] + strength * self._harmonics[which[1]]
        return torch.bmm(logs, matrix)

    def _equaliser(self, batch: int, random: torch.Generator) -> Tensor:
        """(B, 1, bins) log gain: four slow cosines of ±5 dB each, and a band limit for some."""
        weights = (torch.rand(batch, 4, generator=random) - 0.5) * 10.0
        orders = torch.arange(1, 5)[:, None]
        curve = weights @ torch.cos(math.pi * orders * self._axis)
        cutoff = 0.42 + 1.2 * torch.rand(batch, 1, generator=random)
        curve = curve - 400.0 * (self._axis - cutoff).clamp(min=0, max=0.12)
        return curve[:, None] * (math.log(10) / 10)

    @staticmethod
    def _room(power: Tensor, chosen: Tensor, decay: Tensor) -> Tensor:
        """Late reverberation: each hop leaves a tail that falls by ``decay`` every 10 ms."""
        tail, total = power, power
        for _ in range(12):
            tail = decay * torch.nn.functional.pad(tail, (0, 0, 1, 0))[:, :-1]
            total = total + 0.25 * tail
        return torch.where(chosen, total, power)

    def _noise(
        self, power: Tensor, sounding: Tensor, changed: Tensor, random: torch.Generator
    ) -> Tensor:
        """Coloured noise with the statistics of a periodogram, never louder than the speech."""
        batch = len(power)
        speech = 10 * torch.log10(power.mean(2).amax(1) + 1e-12)[:, None, None] - LEAST_SNR_DB
        level = NOISE_DB[0] + (NOISE_DB[1] - NOISE_DB[0]) * torch.rand(
            batch, 1, 1, generator=random
        )
        level = torch.minimum(level, speech.clamp(min=-75.0))
        tilt = 25.0 * torch.rand(batch, 1, 1, generator=random)
        colour = level - tilt * (self._axis - 0.2)
        chance = torch.empty_like(power).exponential_(generator=random)
        # half of the sessions start in digital silence, half in the room's own noise
        present = sounding | (torch.rand(batch, 1, generator=random) < 0.5)
        audible = 10 ** (colour / 10) * chance * present[:, :, None]
        return torch.where(changed, audible, torch.zeros(()))
