"""The video loss weights the mouth, and penalises trembling."""

from __future__ import annotations

import pytest
import torch

from training.video.clips import CORNERS
from training.video.losses import VideoLoss, mouth_weights, noise_weight


def marks(x: float, y: float, wide: float) -> torch.Tensor:
    """(8, 62, 2) a mouth that stands still there."""
    points = torch.zeros(8, 62, 2)
    points[:, CORNERS] = torch.tensor([[x - wide / 2, y], [x + wide / 2, y]])
    return points


def mouth_loss() -> VideoLoss:
    return VideoLoss(mouth_weights(marks(0.5, 0.75, 0.2)[None], 16, 16))


def test_mouth_weights_peak_at_each_mouth() -> None:
    there = torch.stack([marks(0.525, 0.775, 0.2), marks(0.275, 0.575, 0.1)])
    weights = mouth_weights(there, 20, 20)
    assert weights.mean((1, 2)).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert [divmod(int(each.argmax()), 20) for each in weights] == [(15, 10), (11, 5)]


def test_an_error_at_the_mouth_costs_more_than_elsewhere() -> None:
    loss, target = mouth_loss(), torch.zeros(1, 8, 3, 16, 16)
    at_mouth, at_corner = target.clone(), target.clone()
    at_mouth[..., 12, 8], at_corner[..., 0, 0] = 1.0, 1.0
    assert loss(target, target).item() == 0
    assert loss(at_mouth, target).item() > 8 * loss(at_corner, target).item()


def test_a_constant_error_is_better_than_a_trembling_one() -> None:
    loss, target = mouth_loss(), torch.zeros(1, 8, 3, 16, 16)
    constant = torch.full_like(target, 0.1)
    trembling = constant * torch.tensor([1.0, -1.0] * 4)[None, :, None, None, None]
    off = torch.full((1, 3, 16, 16), 0.1)
    assert loss(constant, target, off).item() < loss(trembling, target, off).item() / 2


def test_little_noise_counts_more_up_to_a_bound() -> None:
    weights = noise_weight(torch.tensor([1.0, 0.5, 0.01, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 4.0, 20.0, 20.0]))
