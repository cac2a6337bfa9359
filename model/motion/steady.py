"""Steadies the head between one window and the next.

Knows: pose latents. Does not know: networks or pictures. A diffusion sample is a little off at
each frame, and a head that is off by a pixel now and then trembles where a real one glides. So a
window's pose is smoothed by a least-squares spline that goes on from the frames before it:

    y = argmin |y - x|² + λ·|Δ³(p, y)|²

with x the sampled pose, p the last three frames and Δ³ third differences (Whittaker 1923; Eilers
2003). It is linear with constant matrices and keeps no state beyond the session's own prefix.
"""

from __future__ import annotations

import numpy as np

from model.audio.windows import HOP
from model.conditioning import Floats
from model.motion.actions import ACTION_COUNT

STIFFNESS = 10.0  # λ
_REACH = 3  # frames before the window that a third difference sees
_POSE = slice(ACTION_COUNT, None)


def _matrices(stiffness: float) -> tuple[Floats, Floats]:
    """(HOP, HOP) and (HOP, 3): y = A·x + B·p."""
    third = np.diff(np.eye(_REACH + HOP), 3, axis=0)  # (HOP, 3 + HOP)
    before, inside = third[:, :_REACH], third[:, _REACH:]
    solve = np.linalg.inv(np.eye(HOP) + stiffness * inside.T @ inside)
    return solve.astype(np.float32), (-stiffness * solve @ inside.T @ before).astype(np.float32)


_SAMPLED, _BEFORE = _matrices(STIFFNESS)


def steadied(prefix: Floats, latents: Floats) -> Floats:
    """(..., PREFIX, 58) frames before, (..., HOP, 58) sampled -> (..., HOP, 58), pose smoothed."""
    pose = _SAMPLED @ latents[..., _POSE] + _BEFORE @ prefix[..., -_REACH:, _POSE]
    return np.concatenate([latents[..., :ACTION_COUNT], pose], axis=-1)
