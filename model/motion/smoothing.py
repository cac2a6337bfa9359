"""Steadies head and mouth, within a window and from one to the next.

A diffusion sample is a little off at each frame; a head that is off by a pixel now and then
trembles where a real one glides, and lips quiver. So they are smoothed by a least-squares spline
that goes on from the frames before the window:

    y = argmin |y - x|² + λ·Σ w·|Δ³(p, y)|² + μ·|Δ²(p, y)|²

with x the sampled values, p the last three frames, Δ² and Δ³ second and third differences
(Whittaker 1923; Eilers 2003). The differences that cross the border weigh more, w instead of 1: a
window that begins elsewhere than the last one ended gives way. Alone that would carry the last
window's speed too far into the next; of a head μ keeps it from swinging. It is linear with
constant matrices and keeps no state beyond the session's own prefix.

λ, w and μ are set by the tracked speaker: with them a student's head and jaw are about as lively
as his and no rougher where windows meet than elsewhere (docs/experiments/motion.md). Of a mouth
that takes very little: at 6 Hz a movement keeps 94 % of its size, so lips that meet still do. Eyes
and brows stay as they are, for a blink is over in a few frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.audio.log_mel import HOP
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from model.types import Floats

_REACH = 3  # frames before the window that a third difference sees
HEAD_AT, LIPS_AT = np.arange(ACTION_COUNT, MOTION_DIM), np.flatnonzero(MOUTH)  # of a latent

Spline = tuple[Floats, Floats]  # (HOP, HOP) A and (HOP, 3) B


@dataclass(frozen=True)
class Smoothing:
    """How much differences cost; see the module's docstring."""

    stiffness: float  # λ, of a third difference
    border: float  # w, times λ where it crosses the border
    damping: float  # μ, of a second difference

    def spline(self) -> Spline:
        """A and B of y = A·x + B·p."""
        frames = np.eye(_REACH + HOP)
        second, third = np.diff(frames, 2, axis=0)[1:], np.diff(frames, 3, axis=0)  # (HOP, 3 + HOP)
        crossing = np.arange(HOP) < _REACH
        weights = self.stiffness * np.where(crossing, self.border, 1.0)
        rough = third.T @ (weights[:, None] * third) + self.damping * second.T @ second
        before, inside = rough[_REACH:, :_REACH], rough[_REACH:, _REACH:]
        solve = np.linalg.inv(np.eye(HOP) + inside)
        return solve.astype(np.float32), (-solve @ before).astype(np.float32)


HEAD = Smoothing(3.0, 8.0, 1.0)
LIPS = Smoothing(0.01, 3.0, 0.0)
_HEAD, _LIPS = HEAD.spline(), LIPS.spline()


def smoothed(before: Floats, sampled: Floats, by: Spline) -> Floats:
    """(..., PREFIX, D) frames before, (..., HOP, D) sampled -> (..., HOP, D)."""
    own, past = by
    return np.asarray(own @ sampled + past @ before[..., -_REACH:, :])


def steadied(prefix: Floats, latents: Floats) -> Floats:
    """(..., PREFIX, 58) frames before, (..., HOP, 58) sampled -> (..., HOP, 58)."""
    out = latents.copy()
    for at, by in ((HEAD_AT, _HEAD), (LIPS_AT, _LIPS)):
        out[..., at] = smoothed(prefix[..., at], latents[..., at], by)
    return out
