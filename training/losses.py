"""Losses of motion denoisers: positions, velocities, and the lip gap.

All losses are per sample, (B,), so that the caller can weight samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.portrait.blendshapes import ABSOLUTE, ACTION_COUNT, ACTIONS, MOTION_DIM
from training.data.corpus import LipGap

CLOSED_WEIGHT = 7.0  # additional weight of the lip gap in frames with closed lips
CLOSED_GAP = 0.03  # in eye-corner distances: below it lips look closed
_GAP_UNIT = 0.03


def dimension_weights() -> Tensor:
    """(58,) loss weights with mean 1, largest for what shapes the lips in speech."""
    weights = torch.full((MOTION_DIM,), 0.5)
    weights[:ACTION_COUNT][torch.tensor(ABSOLUTE)] = 1.0
    weights[ACTIONS.index("jawOpen")] = 4.0
    weights[ACTIONS.index("mouthClose")] = 2.0
    weights[ACTIONS.index("mouthPucker")] = 2.0
    return weights / weights.mean()


@dataclass(frozen=True)
class MotionLoss:
    """Weighted squared errors of x0_hat against a target; see `__call__`."""

    mean: Tensor  # (58,) of the latents' normalisation
    std: Tensor  # (58,)
    lip_gap: LipGap
    weights: Tensor  # (58,)
    velocity_weight: float = 1.0
    gap_weight: float = 1.0

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        """(B,) loss of ``x0_hat`` (B, T, 58) against ``target`` of the same shape.

        position  mean over frames and dimensions of w·(x̂ - x)²
        velocity  the same of frame-to-frame differences, the first one across the window's border
        lips      (gap(x̂) - gap(x))² in units of 3 % of the eye-corner distance, times 8 where the
                  target's lips are closed: viewers notice an open /p/, not a wider vowel

        ``before`` (B, 58): error of the frame before the window; None: zero, as of real frames.
        """
        error = x0_hat - target
        position = (self.weights * error**2).mean((1, 2))
        first = error[:, :1] if before is None else error[:, :1] - before[:, None]
        steps = torch.cat([first, torch.diff(error, dim=1)], dim=1)
        velocity = (self.weights * steps**2).mean((1, 2))
        gap_hat, gap = self._gap(x0_hat), self._gap(target)
        closed = 1 + CLOSED_WEIGHT * (gap < CLOSED_GAP)
        lips = (closed * ((gap_hat - gap) / _GAP_UNIT) ** 2).mean(1)
        return position + self.velocity_weight * velocity + self.gap_weight * lips

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        """(B,) squared excess of the lip gap over the data's, where the data's lips are closed,
        in units of 3 % of the eye-corner distance."""
        gap_hat, gap = self._gap(x0_hat), self._gap(data)
        apart = ((gap_hat - gap) / _GAP_UNIT).clamp(min=0)
        return torch.as_tensor((apart**2 * (gap < CLOSED_GAP)).mean(1))

    def _gap(self, x: Tensor) -> Tensor:
        actions = (x * self.std + self.mean)[..., :ACTION_COUNT]
        return self.lip_gap(actions)
