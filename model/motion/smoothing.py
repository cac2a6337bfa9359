"""Smooths head and mouth, within a window and across the border to the next.

Frames of a diffusion sample scatter a little: a head that is off by a pixel now and then trembles
where a real one glides, and lips quiver. Both are smoothed by a least-squares spline that continues
the frames before the window:

    y = argmin |y - x|² + λ·Σ w·|Δ³(p, y)|² + μ·|Δ²(p, y)|²

with x the sampled values, p the last three frames, Δ² and Δ³ second and third differences
(Whittaker 1923; Eilers 2003). Differences across the border weigh w instead of 1, so a window that
does not start where the last one ended gives way. That alone would carry the last window's speed
too far into the next; for the head, μ damps the overshoot. The filter is linear with constant
matrices and keeps no state beyond the session's prefix.

λ, w and μ are fitted to the tracked speaker: a student's head and jaw are about as lively as his
and no rougher at window borders than elsewhere (docs/experiments/motion.md). The mouth needs very
little: a 6 Hz movement keeps 94 % of its amplitude, so lips that meet still do. Eyes and brows are
not smoothed, because a blink lasts only a few frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.audio.log_mel import HOP
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from model.types import Floats

_REACH = 3  # frames before the window that a third difference spans
HEAD_AT, LIPS_AT = np.arange(ACTION_COUNT, MOTION_DIM), np.flatnonzero(MOUTH)  # of a latent

Spline = tuple[Floats, Floats]  # (HOP, HOP) A and (HOP, 3) B


@dataclass(frozen=True)
class Smoothing:
    """Weights of the differences; see the module's docstring."""

    stiffness: float  # λ, of a third difference
    border: float  # w, times λ where it crosses the border
    damping: float  # μ, of a second difference

    def spline(self) -> Spline:
        """A and B of y = A·x + B·p."""
        frames = np.eye(_REACH + HOP)
        second, third = np.diff(frames, 2, axis=0)[1:], np.diff(frames, 3, axis=0)  # (HOP, 3 + HOP)
        crossing = np.arange(HOP) < _REACH
        weights = self.stiffness * np.where(crossing, self.border, 1.0)
        penalty = third.T @ (weights[:, None] * third) + self.damping * second.T @ second
        before, within = penalty[_REACH:, :_REACH], penalty[_REACH:, _REACH:]
        solve = np.linalg.inv(np.eye(HOP) + within)
        return solve.astype(np.float32), (-solve @ before).astype(np.float32)


HEAD = Smoothing(3.0, 8.0, 1.0)
LIPS = Smoothing(0.01, 3.0, 0.0)
_HEAD, _LIPS = HEAD.spline(), LIPS.spline()


def apply_spline(spline: Spline, before: Floats, sampled: Floats) -> Floats:
    """(..., PREFIX, D) frames before, (..., HOP, D) sampled -> (..., HOP, D)."""
    a, b = spline
    return np.asarray(a @ sampled + b @ before[..., -_REACH:, :])


def smooth(prefix: Floats, latents: Floats) -> Floats:
    """(..., PREFIX, 58) frames before, (..., HOP, 58) sampled -> (..., HOP, 58)."""
    out = latents.copy()
    for at, spline in ((HEAD_AT, _HEAD), (LIPS_AT, _LIPS)):
        out[..., at] = apply_spline(spline, prefix[..., at], latents[..., at])
    return out
