"""Samplers: pure functions from noise to a clean latent."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from model.diffusion.arrays import Array, filled
from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.schedule import NoiseSchedule, like
from model.types import Floats


def uniform_timesteps(steps: int) -> Floats:
    """(steps + 1,) times from 1 to 0. The few-step student uses the same grid, only coarser."""
    if steps < 1:
        raise ValueError(f"steps = {steps}, expected at least 1")
    return np.linspace(1.0, 0.0, steps + 1, dtype=np.float32)


def ddim_step(x_t: Array, x0_hat: Array, *, t: Array, s: Array, schedule: NoiseSchedule) -> Array:
    """From time ``t`` (B,) to the earlier ``s`` (B,), without noise.

    DDIM (Song et al. 2021, arXiv 2010.02502, equation 12 with η = 0) written with
    ε = (x_t - α_t·x0_hat) / σ_t, which needs no division by α_t, so it may start at α = 0.
    """
    alpha_t, sigma_t = (like(a, x_t) for a in schedule.alpha_sigma(t))
    alpha_s, sigma_s = (like(a, x_t) for a in schedule.alpha_sigma(s))
    return alpha_s * x0_hat + sigma_s / sigma_t * (x_t - alpha_t * x0_hat)


def ddim_target(x_t: Array, x_s: Array, *, t: Array, s: Array, schedule: NoiseSchedule) -> Array:
    """The x0_hat with which one `ddim_step` goes from ``x_t`` to exactly ``x_s``.

    Progressive distillation's target (Salimans & Ho 2022, arXiv 2202.00512, appendix G).
    """
    alpha_t, sigma_t = (like(a, x_t) for a in schedule.alpha_sigma(t))
    alpha_s, sigma_s = (like(a, x_t) for a in schedule.alpha_sigma(s))
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)


def sample(
    denoiser: Denoiser,
    noise: Array,
    timesteps: Array,
    *,
    cond: Conditions,
    schedule: NoiseSchedule,
) -> Array:
    """DDIM from ``noise`` (B, ...) along ``timesteps`` (N + 1,), falling: N evaluations.

    The teacher walks 25 steps; the student's network was distilled to make the same walk in 6.
    """
    if timesteps.ndim != 1 or len(timesteps) < 2 or bool((timesteps[1:] >= timesteps[:-1]).any()):
        raise ValueError(f"timesteps = {timesteps.tolist()}, expected two or more, falling")
    return _walk(denoiser, noise, pairwise(timesteps), cond=cond, schedule=schedule)


def sample_steps(
    denoiser: Denoiser, noise: Array, steps: Array, *, cond: Conditions, schedule: NoiseSchedule
) -> Array:
    """`sample` along ``steps`` (N, 2), the times at which each step begins and ends.

    For walks that are not a chain, see `model.diffusion.discrete_schedule.trailing_steps`.
    """
    if steps.ndim != 2 or steps.shape[1] != 2 or bool((steps[:, 1] >= steps[:, 0]).any()):
        raise ValueError(f"steps = {steps.tolist()}, expected pairs of falling times")
    return _walk(denoiser, noise, steps, cond=cond, schedule=schedule)


def _walk(
    denoiser: Denoiser,
    noise: Array,
    steps: Iterable[Array],
    *,
    cond: Conditions,
    schedule: NoiseSchedule,
) -> Array:
    x = noise
    for now, then in steps:
        t, s = filled(x, float(now)), filled(x, float(then))
        x = ddim_step(x, denoiser(x, t, cond), t=t, s=s, schedule=schedule)
    return x
