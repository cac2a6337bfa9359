"""A clip longer than the network's window, denoised all at once: how EchoMimic samples.

It is for teachers and for offline work: every frame waits for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions, Denoiser

PER_FRAME = ("audio",)  # conditions (B, F, ...) that are cut like the latents
SHIFT = 2  # frames that the windows move on each step, so that no seam stays in one place
NOISE_LIMIT = 1.5  # EchoMimic clamps its first noise


def windows(frames: int, *, size: int, overlap: int, step: int) -> list[Tensor]:
    """Frame numbers of each window of a clip: they overlap and wrap round its end.

    A clip of no more than ``size`` frames is one window.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap = {overlap}, expected 0 to {size - 1}")
    shift = SHIFT * step
    if frames <= size:
        return [(torch.arange(frames) + shift) % frames]
    starts = range(0, frames, size - overlap)
    return [(torch.arange(start, start + size) + shift) % frames for start in starts]


class ClipDenoiser:
    """``denoiser`` over windows of a clip; where they overlap, their estimates are averaged.

    Averaging x0_hat is the same as averaging v or ε: for one x_t they are affine in each other.
    ``starts`` (N,) are the times at which the sampler's steps begin; they give the step's number.
    """

    def __init__(self, denoiser: Denoiser, starts: Tensor, *, size: int, overlap: int) -> None:
        self._denoiser, self._starts = denoiser, starts
        self._size, self._overlap = size, overlap

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """``x_t`` (B, F, ...) and ``cond`` of all F frames → x0_hat (B, F, ...)."""
        step = int((self._starts - t[0].cpu()).abs().argmin())
        total = torch.zeros_like(x_t)
        count = torch.zeros(x_t.shape[1], device=x_t.device)
        for window in windows(x_t.shape[1], size=self._size, overlap=self._overlap, step=step):
            chosen = window.to(x_t.device)
            part = {k: v[:, chosen] if k in PER_FRAME else v for k, v in cond.items()}
            total.index_add_(1, chosen, self._denoiser(x_t[:, chosen], t, part))
            count.index_add_(0, chosen, torch.ones_like(chosen, dtype=count.dtype))
        return total / count.reshape(-1, *(1,) * (x_t.ndim - 2)).to(total)
