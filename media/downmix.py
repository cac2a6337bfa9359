"""Mix channels to one at the level of the loudest, whatever their number and phases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_OPPOSITE = -0.5  # correlation with the loudest channel, from which a channel is inverted
_LEAST = 0.25  # of the loudest channel's power: a mix with less has cancelled itself
_FADE = 512  # samples from one mix to the next
_LIMITED = 256  # samples whose peak sets one gain


class Downmix:
    """Mixes (C, N) blocks to (N,) by the powers and correlations of the channels so far.

    A mean would lose 15 dB of a voice in one of six channels, and everything where two channels
    have opposite phases.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        """``channels``: FFmpeg's names; low-frequency effects are left out."""
        self._used = np.array([not name.startswith("LFE") for name in channels])
        if not self._used.any():
            self._used[:] = True
        self._covariance = np.zeros((len(channels), len(channels)))
        self._power = 0.0  # the loudest channel's, of each block
        self._weights: NDArray[np.float64] | None = None

    def __call__(self, block: Samples) -> Samples:
        if len(block) == 1:
            return block[0]
        wide = block * self._used[:, None]
        moving = wide - wide.mean(axis=1, keepdims=True)  # an offset is no sound
        covariance = (moving @ moving.T).astype(np.float64)
        self._covariance += covariance
        self._power += covariance.diagonal().max()
        if not self._power:
            return np.zeros(block.shape[1], np.float32)
        weights = mix_weights(self._covariance, self._power)
        if self._weights is not None and weights @ self._covariance @ self._weights < 0:
            weights = -weights  # another channel is the loudest now, of opposite phase
        mono: Samples = weights.astype(np.float32) @ wide
        if self._weights is not None:
            count = min(_FADE, block.shape[1])
            before = self._weights.astype(np.float32) @ wide[:, :count]
            mono[:count] += (before - mono[:count]) * np.linspace(1, 0, count, dtype=np.float32)
        self._weights = weights
        return mono


def mix_weights(covariance: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """(C,) weights whose mix has ``power``, of channels with this (C, C) ``covariance``.

    Channels of opposite phase are inverted. Where channels cancel all the same, the loudest is
    taken alone.
    """
    powers = covariance.diagonal()
    loudest = int(powers.argmax())
    scale = np.sqrt(powers[loudest] * powers)
    weights = np.where(covariance[loudest] < _OPPOSITE * scale, -1.0, 1.0)
    mixed = weights @ covariance @ weights
    if mixed < _LEAST * powers[loudest]:
        weights = np.zeros_like(weights)
        weights[loudest] = 1.0
        mixed = powers[loudest]
    return weights * np.sqrt(power / mixed)


class Limiter:
    """Lowers the gain around samples beyond ±1, without distortion."""

    def __init__(self) -> None:
        self._gain = 1.0

    def __call__(self, mono: Samples) -> Samples:
        if not len(mono) or (self._gain == 1.0 and np.abs(mono).max() <= 1.0):
            return mono
        starts = np.arange(0, len(mono), _LIMITED)
        gains = 1.0 / np.maximum(np.maximum.reduceat(np.abs(mono), starts), 1.0)
        # Between its two ends no piece may exceed its own gain.
        ends = np.minimum(gains, np.append(gains[1:], 1.0))
        at = np.append(starts, len(mono))
        curve = np.interp(np.arange(len(mono)), at, np.append(self._gain, ends))
        self._gain = float(ends[-1])
        limited: Samples = np.clip(mono * curve, -1.0, 1.0).astype(np.float32)
        return limited
