"""Conditions looked at once, not once a sampler step: more than a third of a pass."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions


class Halves(Protocol):
    """A network as `MotionNet`, `TinyNet` and `DenoisingUNet` are."""

    def context(self, cond: Conditions) -> tuple[Tensor, ...]: ...

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor: ...


class CachedContext:
    """``net``, which keeps what it made of the last conditions for as long as they are equal.

    For frozen networks, without gradients: what is kept knows of no change of parameters.
    """

    def __init__(self, net: Halves) -> None:
        self._net = net
        self._cond: dict[str, Tensor] = {}
        self._context: tuple[Tensor, ...] = ()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """As the network itself."""
        if not self._context or not _equal(self._cond, cond):
            self._context, self._cond = self._net.context(cond), dict(cond)
        return self._net.denoise(x_t, t, self._context)


def _equal(a: Conditions, b: Conditions) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
