"""What counts in a frame: the mouth, and that nothing trembles."""

from __future__ import annotations

import pytest
import torch

from model.training.video.clips import VideoClips
from model.training.video.losses import VideoLoss, mouth_weights, noise_weight
from model.training.video.windows import training_clips


def loss_of(clips: VideoClips) -> VideoLoss:
    return VideoLoss(mouth_weights(clips, training_clips(clips), (3, 16, 16)))


def test_an_error_at_the_mouth_costs_many_times_one_elsewhere(clips: VideoClips) -> None:
    loss, target = loss_of(clips), torch.zeros(1, 8, 3, 16, 16)
    assert loss.weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    at_mouth, at_corner = target.clone(), target.clone()
    at_mouth[..., 12, 8], at_corner[..., 0, 0] = 1.0, 1.0
    assert loss(target, target).item() == 0
    assert loss(at_mouth, target).item() > 8 * loss(at_corner, target).item()


def test_a_constant_error_is_better_than_a_trembling_one(clips: VideoClips) -> None:
    loss, target = loss_of(clips), torch.zeros(1, 8, 3, 16, 16)
    constant = torch.full_like(target, 0.1)
    trembling = constant * torch.tensor([1.0, -1.0] * 4)[None, :, None, None, None]
    off = torch.full((1, 3, 16, 16), 0.1)
    assert loss(constant, target, off).item() < loss(trembling, target, off).item() / 2


def test_little_noise_counts_more_up_to_a_bound() -> None:
    weights = noise_weight(torch.tensor([1.0, 0.5, 0.01, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 4.0, 20.0, 20.0]))
