"""What a video denoiser is trained on: pixels and their changes, the mouth's above all.

All losses are per sample, (B,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.video.clips import CORNERS
from training.video.windows import VideoBatch

VELOCITY_WEIGHT = 0.5
# A mouth is 3 % of the square, and nearly all that speech moves.
MOUTH_WEIGHT = 12.0
MOUTH_RADIUS = 0.6  # of its width
LEAST_SNR_WEIGHT = 0.05  # σ² is not counted below this: at hardly any noise nothing is to learn


def mouths(marks: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 62, 2) → centres (..., 2) and widths (...) of the mouths, in sides of the square."""
    left, right = marks[..., CORNERS, :].unbind(-2)
    return 0.5 * (left + right), (right - left).norm(dim=-1)


def mouth_weights(marks: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) how much each place of B windows counts, 1 on average over each: more the
    more often its mouth is there. ``marks`` (B, T, 62, 2) in sides of the square."""
    centres, widths = mouths(marks[:, :, None, None])
    y = (torch.arange(height, device=marks.device) + 0.5)[:, None] / height
    x = (torch.arange(width, device=marks.device) + 0.5) / width
    away = (x - centres[..., 0]) ** 2 + (y - centres[..., 1]) ** 2
    radius = MOUTH_RADIUS * widths.clamp(min=1.0 / width)
    often = torch.exp(-0.5 * away / radius**2).mean(1)
    weights = 1.0 + MOUTH_WEIGHT * often / often.amax((1, 2), keepdim=True)
    return weights / weights.mean((1, 2), keepdim=True)


def loss_of(batch: VideoBatch) -> VideoLoss:
    """The loss in which the mouths of ``batch`` count most, each where it is."""
    height, width = batch.x0.shape[-2:]
    return VideoLoss(mouth_weights(batch.x0_marks, height, width))


@dataclass(frozen=True)
class VideoLoss:
    """Weighted squared errors of x0_hat against a target; see `__call__`."""

    weights: Tensor  # (B, h, w), 1 on average

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        """(B,) loss of ``x0_hat`` (B, T, C, h, w) against ``target`` of the same shape.

        ``before`` (B, C, h, w) is by how much the frame before them was off its own target.
        position  mean of w·(x̂ - x)²
        velocity  the same of frame-to-frame differences, the first one from the frame before: a
                  constant error is a slightly other picture, one that trembles is flicker
        """
        error = x0_hat - target
        first = error[:, :1] if before is None else error[:, :1] - before[:, None]
        steps = torch.cat([first, torch.diff(error, dim=1)], dim=1)
        return self._weighted(error) + VELOCITY_WEIGHT * self._weighted(steps)

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        """(B,) nothing: in pixels no number says how far lips are apart, so nothing is asked of
        the data beyond its own weight."""
        return torch.zeros_like(x0_hat[:, 0, 0, 0, 0])

    def _weighted(self, error: Tensor) -> Tensor:
        weights = self.weights.to(error)[:, None, None]
        return (weights * error.square()).mean((1, 2, 3, 4))


def noise_weight(sigma: Tensor) -> Tensor:
    """(B,) weight of an x0 error at noise σ: as an error of v counts, which is 1/σ² times x0's
    (Salimans & Ho 2022, arXiv 2202.00512, appendix D), up to 1/0.05."""
    return 1.0 / sigma.square().clamp(min=LEAST_SNR_WEIGHT)
