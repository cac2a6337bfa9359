"""Noise schedules as pairs (α, σ): x_t = α·x0 + σ·ε with α² + σ² = 1 and t in [0, 1].

Pairs, not σ alone, so that the end of the schedule may hold no signal at all (α = 0, zero terminal
SNR: Lin et al. 2024, arXiv 2305.08891).
"""

from __future__ import annotations

import math
from typing import Protocol

from model.diffusion.arrays import Array, functions


class NoiseSchedule(Protocol):
    """α and σ at a time."""

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """``t`` of any shape, in [0, 1] -> α(t), σ(t) of that shape."""
        ...


class CosineSchedule:
    """α = cos(πt/2), σ = sin(πt/2): the variance-preserving trigonometric path.

    Salimans & Ho 2022 (arXiv 2202.00512), section 4. Ends at exactly α = 0.
    """

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        xp, angle = functions(t), t * (math.pi / 2)
        # cos(π/2) is 6e-17 in double and -4e-8 in single precision; the end is exactly 0
        return xp.where(t >= 1, xp.zeros_like(t), xp.cos(angle)), xp.sin(angle)


def add_noise(schedule: NoiseSchedule, x0: Array, eps: Array, *, t: Array) -> Array:
    """x_t = α·x0 + σ·ε for ``x0``, ``eps`` (B, ...) and ``t`` (B,)."""
    alpha, sigma = (like(a, x0) for a in schedule.alpha_sigma(t))
    return alpha * x0 + sigma * eps


def like(scale: Array, x: Array) -> Array:
    """(B,) -> (B, 1, ...) with as many axes as ``x``."""
    return scale.reshape(-1, *(1,) * (x.ndim - 1))
