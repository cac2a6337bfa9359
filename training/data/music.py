"""Synthetic music: as mel bands for training, as sound for evaluation.

Unlike a voice, music holds its tones and then jumps, many at once. So a piece is a sequence of
chords of harmonic tones that are struck and decay, with a beat of noise. No recording is needed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.audio.log_mel import SPECTRUM_BINS, mel_filters
from model.types import SAMPLE_RATE, Floats

LOWEST_HZ = 55.0
NOTES = 60  # semitones, five octaves
CHORD = torch.tensor([[0, 12, 16, 19], [0, 12, 15, 19], [0, 7, 12, 24], [0, 5, 12, 21]])
HARMONICS = 24
BEAT_HOPS = (12, 60)  # of 10 ms
_DECAY = (0.9, 0.995)  # of a struck note, per hop


def _tones(roll_off: float) -> Tensor:
    """(NOTES, bands) mean power of a tone of each pitch; overtone k has power k^-``roll_off``."""
    pitch = LOWEST_HZ * 2 ** (torch.arange(NOTES) / 12)
    order = torch.arange(1, HARMONICS + 1)
    hertz = pitch[:, None] * order
    bins = torch.linspace(0, SAMPLE_RATE / 2, SPECTRUM_BINS)
    width = 0.6 * SAMPLE_RATE / 400  # the main lobe of the analysis window
    lobes = torch.exp(-(((bins - hertz[:, :, None]) / width) ** 2))
    power = (order**-roll_off)[:, None] * lobes
    tones = power.sum(1) @ torch.from_numpy(mel_filters().copy())
    return tones / tones.mean(1, keepdim=True)


class Music:
    """Draws pieces; holds constant tables only."""

    def __init__(self) -> None:
        self._tones = torch.stack([_tones(1.2), _tones(2.5)])  # bright, mellow

    def __call__(self, size: int, hops: int, random: torch.Generator) -> Tensor:
        """(size, hops, bands) power, with mean 1 over each piece."""

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(size, *shape, generator=random)

        beat = uniform(*BEAT_HOPS, 1)
        time = torch.arange(hops) + beat * uniform(0, 1, 1)
        bar = (time / beat).long()  # (size, hops) index of the chord
        chords = hops // BEAT_HOPS[0] + 2
        root = torch.randint(24, (size, chords), generator=random)
        shape = CHORD[torch.randint(len(CHORD), (size, chords), generator=random)]
        notes = (root[:, :, None] + shape).clamp(max=NOTES - 1)
        timbre = self._tones[torch.randint(len(self._tones), (size,), generator=random)]
        loud = uniform(0.1, 1, 1, notes.shape[2], 1)
        each = torch.arange(size)[:, None, None]
        spectra = (loud * timbre[each, notes]).sum(2)  # (size, chords, bands)
        since = time - bar * beat
        struck = uniform(*_DECAY, 1) ** since
        drum = uniform(-1, 1, 1).clamp(min=0) * 0.7**since  # none in every second piece
        power = struck[:, :, None] * spectra[torch.arange(size)[:, None], bar] + drum[:, :, None]
        return power / power.mean((1, 2), keepdim=True)


def synthesise_music(seconds: float, seed: int) -> Floats:
    """(N,) samples at 16 kHz of struck chords and a beat of noise, with an RMS of 0.1."""
    random = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE)
    sound = np.zeros(count)
    beat = int(SAMPLE_RATE * random.uniform(0.2, 0.6))
    loud, decay, roll_off = random.uniform(0, 1), random.uniform(2, 8), random.uniform(0.8, 1.8)
    order = np.arange(1, HARMONICS // 2 + 1)[:, None]
    for start in range(0, count, beat):
        time = np.arange(min(count - start, 2 * SAMPLE_RATE)) / SAMPLE_RATE
        rung = slice(start, start + len(time))
        notes = random.integers(24) + CHORD[random.integers(len(CHORD))].numpy()
        for hertz in LOWEST_HZ * 2 ** (notes / 12):
            tone = (order**-roll_off * np.sin(2 * np.pi * hertz * order * time)).sum(0)
            sound[rung] += tone * np.exp(-decay * time)
        sound[rung] += loud * random.standard_normal(len(time)) * np.exp(-30 * time)
    return np.asarray(0.1 * sound / np.sqrt((sound**2).mean()), np.float32)
