"""Losses of video denoisers: latents and their changes over time, weighted towards the mouth.

All losses are per sample, (B,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.video.clips import CORNERS
from training.video.windows import VideoBatch

VELOCITY_WEIGHT = 0.5
# The mouth is 3 % of the square, and nearly all that speech moves.
MOUTH_WEIGHT = 12.0
MOUTH_RADIUS = 0.6  # in mouth widths
MIN_SIGMA_SQUARED = 0.05  # of `noise_weight`: nearly clean frames have nothing to teach


def mouths(marks: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 62, 2) → centres (..., 2) and widths (...) of the mouths, in sides of the square."""
    left, right = marks[..., CORNERS, :].unbind(-2)
    return 0.5 * (left + right), (right - left).norm(dim=-1)


def mouth_weights(marks: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) weights with mean 1, larger where the mouth is over a window.

    ``marks`` (B, T, 62, 2): landmarks in sides of the square.
    """
    centres, widths = mouths(marks[:, :, None, None])
    y = (torch.arange(height, device=marks.device) + 0.5)[:, None] / height
    x = (torch.arange(width, device=marks.device) + 0.5) / width
    away = (x - centres[..., 0]) ** 2 + (y - centres[..., 1]) ** 2
    radius = MOUTH_RADIUS * widths.clamp(min=1.0 / width)
    often = torch.exp(-0.5 * away / radius**2).mean(1)
    weights = 1.0 + MOUTH_WEIGHT * often / often.amax((1, 2), keepdim=True)
    return weights / weights.mean((1, 2), keepdim=True)


def loss_of(batch: VideoBatch) -> VideoLoss:
    """The loss of ``batch``, weighted by its `mouth_weights`."""
    height, width = batch.x0.shape[-2:]
    return VideoLoss(mouth_weights(batch.x0_marks, height, width))


@dataclass(frozen=True)
class VideoLoss:
    """Weighted squared errors of x0_hat against a target; see `__call__`."""

    weights: Tensor  # (B, h, w), 1 on average

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        """(B,) loss of ``x0_hat`` (B, T, C, h, w) against ``target`` of the same shape.

        position  mean of w·(x̂ - x)²
        velocity  the same of frame-to-frame differences; a constant error only changes the
                  picture, a changing one flickers

        ``before`` (B, C, h, w): error of the frame before the window, for the first difference.
        """
        error = x0_hat - target
        first = error[:, :1] if before is None else error[:, :1] - before[:, None]
        steps = torch.cat([first, torch.diff(error, dim=1)], dim=1)
        return self._weighted(error) + VELOCITY_WEIGHT * self._weighted(steps)

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        """(B,) zeros: no pixel measures the lip gap."""
        return torch.zeros_like(x0_hat[:, 0, 0, 0, 0])

    def _weighted(self, error: Tensor) -> Tensor:
        weights = self.weights.to(error)[:, None, None]
        return (weights * error.square()).mean((1, 2, 3, 4))


def noise_weight(sigma: Tensor) -> Tensor:
    """(B,) weights 1/σ² of the x0 error at noise levels σ (B,), at most 20.

    So weighted, an x0 error counts as an error of v (Salimans & Ho 2022, arXiv 2202.00512,
    appendix D).
    """
    return 1.0 / sigma.square().clamp(min=MIN_SIGMA_SQUARED)
