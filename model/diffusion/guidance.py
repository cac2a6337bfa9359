"""Classifier-free guidance over two conditions: three evaluations, or one with learned tokens."""

from __future__ import annotations

from model.diffusion.arrays import Array, functions
from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.schedule import like
from model.types import ScaleLimits


def guided(denoiser: Denoiser, limits: ScaleLimits | None) -> Denoiser:
    """``denoiser`` with its two scales: as tokens within ``limits``, or by its three branches."""
    return MultiCFGDenoiser(denoiser) if limits is None else CFGTokenDenoiser(denoiser, limits)


def _check_scales(guidance: Array, batch: int) -> None:
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

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        guidance = cond["guidance"]
        _check_scales(guidance, len(x_t))
        nothing, reference, both = self.branches(x_t, t, cond)
        s_aud, s_ref = (like(guidance[:, i], x_t) for i in range(2))
        return nothing + s_ref * (reference - nothing) + s_aud * (both - reference)

    def branches(self, x_t: Array, t: Array, cond: Conditions) -> tuple[Array, Array, Array]:
        """x̂(∅,∅), x̂(ref,∅) and x̂(ref,aud); scales in ``cond`` are ignored."""
        xp, rows = functions(x_t), len(x_t)
        rest = {k: xp.concat([v] * 3) for k, v in cond.items() if k != "guidance"}
        on, off = xp.ones_like(t), xp.zeros_like(t)
        rest["has_reference"] = xp.concat([off, on, on])
        rest["has_audio"] = xp.concat([off, off, on])
        made = self._denoiser(xp.concat([x_t] * 3), xp.concat([t] * 3), rest)
        return made[:rows], made[rows : 2 * rows], made[2 * rows :]


class CFGTokenDenoiser:
    """Guidance of the student: the two scales go in as tokens, one evaluation comes out.

    ``limits`` are the ranges ((low, high) of s_aud, of s_ref) that the student was distilled in.
    Scales are clamped to them, so any number gives the nearest result that it was trained for.
    """

    def __init__(self, denoiser: Denoiser, limits: ScaleLimits) -> None:
        self._denoiser, self._limits = denoiser, limits

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        _check_scales(cond["guidance"], len(x_t))
        xp, scales = functions(x_t), cond["guidance"]
        within = [xp.clip(scales[:, i], *side) for i, side in enumerate(self._limits)]
        on = xp.ones_like(t)
        everything = {**cond, "guidance": xp.stack(within, 1), "has_audio": on, "has_reference": on}
        return self._denoiser(x_t, t, everything)
