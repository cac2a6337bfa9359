"""Denoisers: whatever a network predicts (ε, v or x0), its caller gets x0_hat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from model.diffusion.schedule import NoiseSchedule, like

Conditions = Mapping[str, Tensor]  # every tensor is (B, ...), of one batch with x_t
Forward = Callable[[Tensor, Tensor, Conditions], Tensor]  # x_t (B, ...), t (B,), cond -> (B, ...)


class Denoiser(Protocol):
    """D(x_t, t, cond) -> x0_hat."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor: ...


class X0Denoiser:
    """A network that predicts x0 itself."""

    def __init__(self, net: Forward) -> None:
        self._net = net

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self._net(x_t, t, cond)


class VDenoiser:
    """A network that predicts v = α·ε - σ·x0 (Salimans & Ho 2022), so x0 = α·x_t - σ·v."""

    def __init__(self, net: Forward, schedule: NoiseSchedule) -> None:
        self._net, self._schedule = net, schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, sigma = (like(a, x_t) for a in self._schedule.alpha_sigma(t))
        return alpha * x_t - sigma * self._net(x_t, t, cond)


class EpsDenoiser:
    """A network that predicts ε (Ho et al. 2020), so x0 = (x_t - σ·ε) / α.

    Says nothing of x0 where α = 0: raises ``ValueError`` there.
    """

    def __init__(self, net: Forward, schedule: NoiseSchedule) -> None:
        self._net, self._schedule = net, schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, sigma = (like(a, x_t) for a in self._schedule.alpha_sigma(t))
        if bool(torch.any(alpha <= 0)):
            raise ValueError(f"t = {t.max().item()} has alpha = 0, ε-prediction needs alpha > 0")
        return (x_t - sigma * self._net(x_t, t, cond)) / alpha
