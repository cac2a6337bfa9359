"""Denoisers: whatever a network predicts (ε, v or x0), its caller gets x0_hat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from model.diffusion.arrays import Array
from model.diffusion.schedule import NoiseSchedule, like

Conditions = Mapping[str, Array]  # each is (B, ...), of one batch with x_t
Forward = Callable[[Array, Array, Conditions], Array]  # x_t (B, ...), t (B,), cond -> (B, ...)


class Denoiser(Protocol):
    """D(x_t, t, cond) -> x0_hat."""

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array: ...


class X0Denoiser:
    """A network that predicts x0 itself."""

    def __init__(self, net: Forward) -> None:
        self._net = net

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        return self._net(x_t, t, cond)


class VDenoiser:
    """A network that predicts v = α·ε - σ·x0 (Salimans & Ho 2022), so x0 = α·x_t - σ·v."""

    def __init__(self, net: Forward, schedule: NoiseSchedule) -> None:
        self._net, self._schedule = net, schedule

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        alpha, sigma = (like(a, x_t) for a in self._schedule.alpha_sigma(t))
        return alpha * x_t - sigma * self._net(x_t, t, cond)


class EpsDenoiser:
    """A network that predicts ε (Ho et al. 2020), so x0 = (x_t - σ·ε) / α.

    Says nothing of x0 where α = 0: raises ``ValueError`` there.
    """

    def __init__(self, net: Forward, schedule: NoiseSchedule) -> None:
        self._net, self._schedule = net, schedule

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        alpha, sigma = (like(a, x_t) for a in self._schedule.alpha_sigma(t))
        if bool((alpha <= 0).any()):
            raise ValueError(f"t = {t.max().item()} has alpha = 0, ε-prediction needs alpha > 0")
        return (x_t - sigma * self._net(x_t, t, cond)) / alpha
