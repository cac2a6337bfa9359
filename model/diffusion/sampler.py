"""Samplers: pure functions from noise to a clean latent."""

from __future__ import annotations

import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.schedule import NoiseSchedule, like


def uniform_timesteps(steps: int) -> Tensor:
    """(steps + 1,) times from 1 to 0. The few-step student uses the same grid, only coarser."""
    if steps < 1:
        raise ValueError(f"steps = {steps}, expected at least 1")
    return torch.linspace(1.0, 0.0, steps + 1)


def trailing_steps(steps: int, train_steps: int) -> Tensor:
    """(steps, 2): the times at which each DDIM step of a discretely trained teacher begins, ends.

    Steps begin evenly spaced from the last trained time (arXiv 2305.08891, section 3.3), rounded to
    trained ones. Each ends a whole train_steps // steps trained times earlier, as diffusers has it,
    which with the rounding may lie a thousandth beside the next one's beginning.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps = {steps}, expected 1 to {train_steps}")
    starts = (train_steps - torch.arange(steps, dtype=torch.float64) * train_steps / steps).round()
    ends = (starts - train_steps // steps).clamp(min=0.0)
    return (torch.stack([starts, ends], dim=1) / train_steps).float()


def ddim_step(
    x_t: Tensor, x0_hat: Tensor, *, t: Tensor, s: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """From time ``t`` (B,) to the earlier ``s`` (B,), without noise.

    DDIM (Song et al. 2021, arXiv 2010.02502, equation 12 with η = 0) written with
    ε = (x_t - α_t·x0_hat) / σ_t, which needs no division by α_t, so it may start at α = 0.
    """
    alpha_t, sigma_t = (like(a, x_t) for a in schedule.alpha_sigma(t))
    alpha_s, sigma_s = (like(a, x_t) for a in schedule.alpha_sigma(s))
    return alpha_s * x0_hat + sigma_s / sigma_t * (x_t - alpha_t * x0_hat)


def ddim_target(
    x_t: Tensor, x_s: Tensor, *, t: Tensor, s: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """The x0_hat with which one `ddim_step` goes from ``x_t`` to exactly ``x_s``.

    Progressive distillation's target (Salimans & Ho 2022, arXiv 2202.00512, appendix G).
    """
    alpha_t, sigma_t = (like(a, x_t) for a in schedule.alpha_sigma(t))
    alpha_s, sigma_s = (like(a, x_t) for a in schedule.alpha_sigma(s))
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    timesteps: Tensor,
    *,
    cond: Conditions,
    schedule: NoiseSchedule,
) -> Tensor:
    """DDIM from ``noise`` (B, ...) along ``timesteps`` (N + 1,), falling: N evaluations.

    The teacher walks 25 steps; the student's network was distilled to make the same walk in 6.
    """
    if timesteps.ndim != 1 or len(timesteps) < 2 or bool(torch.any(timesteps.diff() >= 0)):
        raise ValueError(f"timesteps = {timesteps.tolist()}, expected two or more, falling")
    return sample_steps(
        denoiser,
        noise,
        torch.stack([timesteps[:-1], timesteps[1:]], dim=1),
        cond=cond,
        schedule=schedule,
    )


def sample_steps(
    denoiser: Denoiser, noise: Tensor, steps: Tensor, *, cond: Conditions, schedule: NoiseSchedule
) -> Tensor:
    """`sample` along ``steps`` (N, 2), the times at which each step begins and ends.

    For walks that are not a chain, see `trailing_steps`.
    """
    if steps.ndim != 2 or steps.shape[1] != 2 or bool(torch.any(steps.diff(dim=1) >= 0)):
        raise ValueError(f"steps = {steps.tolist()}, expected pairs of falling times")
    x = noise
    for now, then in steps:
        t, s = now.to(x).expand(len(x)), then.to(x).expand(len(x))
        x = ddim_step(x, denoiser(x, t, cond), t=t, s=s, schedule=schedule)
    return x
