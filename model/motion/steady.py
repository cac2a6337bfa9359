"""Steadies the head between one window and the next.

Knows: pose latents. Does not know: networks or pictures. A diffusion sample is a little off at
each frame, and a head that is off by a pixel now and then trembles where a real one glides. So a
window's pose is smoothed by a least-squares spline that goes on from the frames before it:

    y = argmin |y - x|² + λ·Σ w·|Δ³(p, y)|² + μ·|Δ²(p, y)|²

with x the sampled pose, p the last three frames, Δ² and Δ³ second and third differences (Whittaker
1923; Eilers 2003). The differences that cross the border weigh more, w = 8 instead of 1: a window
that begins elsewhere than the last one ended gives way. Alone that would carry the last window's
speed too far into the next; μ keeps it from swinging. It is linear with constant matrices and
keeps no state beyond the session's own prefix.

λ, w and μ are set by the tracked speaker: with them a student's head is about as lively as his
and no rougher where windows meet than elsewhere (docs/training.md).
"""

from __future__ import annotations

import numpy as np

from model.audio.windows import HOP
from model.conditioning import Floats
from model.motion.actions import ACTION_COUNT

STIFFNESS = 3.0  # λ
BORDER = 8.0  # w
DAMPING = 1.0  # μ
_REACH = 3  # frames before the window that a third difference sees
_POSE = slice(ACTION_COUNT, None)

Spline = tuple[Floats, Floats]  # (HOP, HOP) A and (HOP, 3) B


def spline(stiffness: float, border: float, damping: float) -> Spline:
    """Of λ, w and μ: y = A·x + B·p."""
    frames = np.eye(_REACH + HOP)
    second, third = np.diff(frames, 2, axis=0)[1:], np.diff(frames, 3, axis=0)  # (HOP, 3 + HOP)
    weights = np.where(np.arange(HOP) < _REACH, stiffness * border, stiffness)
    rough = third.T @ (weights[:, None] * third) + damping * second.T @ second
    before, inside = rough[_REACH:, :_REACH], rough[_REACH:, _REACH:]
    solve = np.linalg.inv(np.eye(HOP) + inside)
    return solve.astype(np.float32), (-solve @ before).astype(np.float32)


_SPLINE = spline(STIFFNESS, BORDER, DAMPING)


def steadied(prefix: Floats, latents: Floats, by: Spline = _SPLINE) -> Floats:
    """(..., PREFIX, 58) frames before, (..., HOP, 58) sampled -> (..., HOP, 58), pose smoothed."""
    sampled, before = by
    pose = sampled @ latents[..., _POSE] + before @ prefix[..., -_REACH:, _POSE]
    return np.concatenate([latents[..., :ACTION_COUNT], pose], axis=-1)
