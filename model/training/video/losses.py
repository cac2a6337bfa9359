"""What a video denoiser is trained on: pixels and their changes, the mouth's above all.

Knows: latents on the square's grid, and where in it mouths are. Does not know: networks or
samplers. All losses are per sample, (B,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.training.video.clips import Clip, VideoClips, mouths

VELOCITY_WEIGHT = 0.5
# A mouth is 3 % of the square, and nearly all that speech moves.
MOUTH_WEIGHT = 12.0
MOUTH_RADIUS = 0.6  # of its width
LEAST_SNR_WEIGHT = 0.05  # σ² is not counted below this: at hardly any noise nothing is to learn


def mouth_weights(
    clips: VideoClips, chosen: Sequence[Clip], latent_shape: tuple[int, int, int]
) -> Tensor:
    """(h, w) how much each place counts, 1 on average: more the more often a mouth is there."""
    _, height, width = latent_shape
    marks = np.concatenate([clips.marks[clip.span][::10] for clip in chosen])
    centres, widths = mouths(marks)
    y = (np.arange(height) + 0.5)[:, None] / height
    x = (np.arange(width) + 0.5)[None] / width
    often = np.zeros((height, width))
    for (cx, cy), wide in zip(centres, np.maximum(widths, 1.0 / width), strict=True):
        radius = MOUTH_RADIUS * wide
        often += np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2) / radius**2)
    weights = 1.0 + MOUTH_WEIGHT * often / often.max()
    return torch.from_numpy((weights / weights.mean()).astype(np.float32))


@dataclass(frozen=True)
class VideoLoss:
    """Weighted squared errors of x0_hat against a target; see `__call__`."""

    weights: Tensor  # (h, w), 1 on average

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
        return (self.weights.to(error) * error.square()).mean((1, 2, 3, 4))


def noise_weight(sigma: Tensor) -> Tensor:
    """(B,) weight of an x0 error at noise σ: as an error of v counts, which is 1/σ² times x0's
    (Salimans & Ho 2022, arXiv 2202.00512, appendix D), up to 1/0.05."""
    return 1.0 / sigma.square().clamp(min=LEAST_SNR_WEIGHT)
