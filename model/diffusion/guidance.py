"""Classifier-free guidance over two conditions: three evaluations, or one with learned tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.schedule import like
from model.types import ScaleLimits


def guided(denoiser: Denoiser, limits: ScaleLimits | None) -> Denoiser:
    """``denoiser`` with its two scales: as tokens within ``limits``, or by its three branches."""
    return MultiCFGDenoiser(denoiser) if limits is None else CFGTokenDenoiser(denoiser, limits)


def _check_scales(guidance: Tensor, batch: int) -> None:
    if guidance.shape != (batch, 2):
        raise ValueError(f"guidance has shape {tuple(guidance.shape)}, expected ({batch}, 2)")


class MultiCFGDenoiser:
    """Guidance of the teacher: its three branches in one batched call.

    x̂ = x̂(∅,∅) + s_ref·[x̂(ref,∅) - x̂(∅,∅)] + s_aud·[x̂(ref,aud) - x̂(ref,∅)]
    (FADA, arXiv 2412.16915, after InstructPix2Pix, arXiv 2211.09800, equation 3).
    ``cond["guidance"]`` is (B, 2): s_aud, s_ref.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        guidance = cond["guidance"]
        _check_scales(guidance, len(x_t))
        nothing, reference, both = self.branches(x_t, t, cond)
        s_aud, s_ref = (like(s, x_t) for s in guidance.unbind(1))
        return nothing + s_ref * (reference - nothing) + s_aud * (both - reference)

    def branches(self, x_t: Tensor, t: Tensor, cond: Conditions) -> tuple[Tensor, Tensor, Tensor]:
        """x̂(∅,∅), x̂(ref,∅) and x̂(ref,aud); scales in ``cond`` are ignored."""
        rest = {k: torch.cat([v] * 3) for k, v in cond.items() if k != "guidance"}
        on, off = torch.ones_like(t), torch.zeros_like(t)
        rest["has_reference"] = torch.cat([off, on, on])
        rest["has_audio"] = torch.cat([off, off, on])
        made = self._denoiser(torch.cat([x_t] * 3), torch.cat([t] * 3), rest)
        nothing, reference, both = made.chunk(3)
        return nothing, reference, both


class CFGTokenDenoiser:
    """Guidance of the student: the two scales go in as tokens, one evaluation comes out.

    ``limits`` are the ranges ((low, high) of s_aud, of s_ref) that the student was distilled in.
    Scales are clamped to them, so any number gives the nearest result that it was trained for.
    """

    def __init__(self, denoiser: Denoiser, limits: ScaleLimits) -> None:
        self._denoiser = denoiser
        self._low, self._high = (torch.tensor(side) for side in zip(*limits, strict=True))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        _check_scales(cond["guidance"], len(x_t))
        within = cond["guidance"].clamp(self._low.to(x_t), self._high.to(x_t))
        on = torch.ones_like(t)
        everything = {**cond, "guidance": within, "has_audio": on, "has_reference": on}
        return self._denoiser(x_t, t, everything)


class ScaleToken(nn.Module):
    """(B,) guidance scales -> (B, 1, W) tokens (FADA, arXiv 2412.16915, section 3.3).

    ``embed``: (B,) scales -> (B, ``features``). The last layer starts at zero, so a student starts
    as its teacher with one empty token.
    """

    def __init__(self, width: int, features: int, *, embed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._embed = embed
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scales: Tensor) -> Tensor:
        hidden = F.silu(self.hidden(self._embed(scales).to(self.hidden.weight.dtype)))
        return torch.as_tensor(self.out(hidden)[:, None])
