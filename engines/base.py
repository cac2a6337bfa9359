"""What an engine is: one network's forward, prepared for a device."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from model.diffusion.denoiser import Conditions, Forward


class Engine(Protocol):
    """One forward. ``buckets`` are the batch sizes it was built for; empty: any."""

    buckets: tuple[int, ...]

    def __call__(self, **tensors: Tensor) -> Tensor:
        """``x_t`` (B, ...), ``t`` (B,) and the conditions by name -> the prediction (B, ...)."""
        ...


def as_forward(engine: Engine) -> Forward:
    """The engine as the denoisers call a network."""

    def forward(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return engine(x_t=x_t, t=t, **cond)

    return forward
