"""Noise schedules as pairs (α, σ): x_t = α·x0 + σ·ε with α² + σ² = 1 and t in [0, 1].

Pairs, not σ alone, so that the end of the schedule may hold no signal at all (α = 0, zero terminal
SNR: Lin et al. 2024, arXiv 2305.08891).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """α and σ at a time."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``t`` of any shape, in [0, 1] -> α(t), σ(t) of that shape."""
        ...


class CosineSchedule:
    """α = cos(πt/2), σ = sin(πt/2): the variance-preserving trigonometric path.

    Salimans & Ho 2022 (arXiv 2202.00512), section 4. Ends at exactly α = 0.
    """

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        # cos(π/2) is 6e-17 in double and -4e-8 in single precision; the end is exactly 0
        return torch.where(t >= 1, torch.zeros_like(t), torch.cos(angle)), torch.sin(angle)


class LinearBetaSchedule:
    """DDPM's schedule of ``steps`` discrete noises, betas rising linearly (arXiv 2006.11239).

    ``zero_terminal_snr`` shifts and stretches α so that it ends at exactly 0 and begins where it
    began (Lin et al. 2024, arXiv 2305.08891, algorithm 1). Time k / steps is after step k - 1, time
    0 is clean data; between them α is interpolated, so any t may be asked for.
    """

    def __init__(self, steps: int, *, first: float, last: float, zero_terminal_snr: bool) -> None:
        if steps < 2 or not 0.0 < first <= last < 1.0:
            raise ValueError(
                f"steps = {steps}, betas = {first} to {last}, "
                "expected 2 or more, rising between 0 and 1"
            )
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        alpha = (1.0 - betas).cumprod(0).sqrt()
        if zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        self.steps = steps
        self._alpha = torch.cat([torch.ones(1, dtype=torch.float64), alpha])

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        place = (t.double() * self.steps).clamp(0.0, float(self.steps))
        below = place.floor().clamp(max=self.steps - 1)
        table = self._alpha.to(t.device)
        left, right = table[below.long()], table[below.long() + 1]
        alpha = left + (place - below) * (right - left)
        return alpha.to(t.dtype), (1.0 - alpha * alpha).sqrt().to(t.dtype)


def add_noise(schedule: NoiseSchedule, x0: Tensor, eps: Tensor, *, t: Tensor) -> Tensor:
    """x_t = α·x0 + σ·ε for ``x0``, ``eps`` (B, ...) and ``t`` (B,)."""
    alpha, sigma = (like(a, x0) for a in schedule.alpha_sigma(t))
    return alpha * x0 + sigma * eps


def like(scale: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) with as many axes as ``x``."""
    return scale.reshape(-1, *(1,) * (x.ndim - 1))
