"""Classifier-free guidance over two conditions: three evaluations, or one with learned tokens."""

from __future__ import annotations

from model.diffusion.arrays import Array, functions
from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.schedule import like
from model.types import ScaleLimits

_BRANCHES = 3  # nothing, reference, reference and audio


def guided(denoiser: Denoiser, limits: ScaleLimits | None) -> Denoiser:
    """``denoiser`` with its two scales: as tokens within ``limits``, or by its three branches."""
    return MultiCFGDenoiser(denoiser) if limits is None else CFGTokenDenoiser(denoiser, limits)


def _check_scales(guidance: Array, batch: int) -> None:
    if guidance.shape != (batch, 2):
        raise ValueError(f"guidance has shape {tuple(guidance.shape)}, expected ({batch}, 2)")


class MultiCFGDenoiser:
    """Guidance of the teacher: its three branches in one batched call.

    x̂ = x̂(∅,∅) + s_ref·[x̂(ref,∅) - x̂(∅,∅)] + s_aud·[x̂(ref,aud) - x̂(ref,∅)]
      = (1 - s_ref)·x̂(∅,∅) + (s_ref - s_aud)·x̂(ref,∅) + s_aud·x̂(ref,aud)
    (FADA, arXiv 2412.16915, after InstructPix2Pix, arXiv 2211.09800, equation 3).
    ``cond["guidance"]`` is (B, 2): s_aud, s_ref. A branch of weight 0 is not evaluated.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        guidance = cond["guidance"]
        _check_scales(guidance, len(x_t))
        xp = functions(x_t)
        s_aud, s_ref = guidance[:, 0], guidance[:, 1]
        weights = xp.stack([1 - s_ref, s_ref - s_aud, s_aud])  # (3, B)
        branch, row = xp.where(weights != 0)
        made = self._evaluate(x_t, t, cond, branch=branch, row=row)
        made = like(weights[branch, row], made) * made
        x0_hat = xp.zeros_like(x_t)
        for one in range(_BRANCHES):  # in which no row comes twice
            x0_hat[row[branch == one]] += made[branch == one]
        return x0_hat

    def branches(self, x_t: Array, t: Array, cond: Conditions) -> tuple[Array, Array, Array]:
        """x̂(∅,∅), x̂(ref,∅) and x̂(ref,aud); scales in ``cond`` are ignored."""
        xp, rows = functions(x_t), len(x_t)
        branch, row = xp.where(xp.stack([xp.ones_like(t)] * _BRANCHES) != 0)
        made = self._evaluate(x_t, t, cond, branch=branch, row=row)
        return made[:rows], made[rows : 2 * rows], made[2 * rows :]

    def _evaluate(
        self, x_t: Array, t: Array, cond: Conditions, *, branch: Array, row: Array
    ) -> Array:
        """x̂ (N, ...) of the rows ``row`` (N,), each in its ``branch`` (N,) of 0 to 2."""
        rest = {name: value[row] for name, value in cond.items() if name != "guidance"}
        on = functions(t).ones_like(t)[row]
        rest["has_reference"], rest["has_audio"] = on * (branch > 0), on * (branch > 1)
        return self._denoiser(x_t[row], t[row], rest)


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
