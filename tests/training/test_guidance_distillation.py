"""Where a student's updates start: at noised recordings, or on-policy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions
from model.diffusion.schedule import CosineSchedule
from tests.training.helpers import ConstantWindows, SquaredLoss
from training.guidance_distillation import STEPS, StudentObjective

B, T = 8, 16
PREDICTED, RECORDED = 1.0, -1.0


def run(updates: int, **options: object) -> tuple[list[float], list[tuple[float, float]]]:
    """The data's weight in each update, and of the teacher's first call in each the time and the
    mean of x_t / α, which shows whose frames x_t holds."""
    asked: list[list[tuple[float, float]]] = []

    def teacher(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, _ = CosineSchedule().alpha_sigma(t)
        at = int(alpha.argmax())
        asked[-1].append((float(t[at]), float(x_t[at].mean() / alpha[at])))
        return torch.zeros_like(x_t)

    def student(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return torch.full_like(x_t, PREDICTED)

    random = torch.Generator().manual_seed(0)
    objective = StudentObjective(
        student,
        teacher,
        ConstantWindows(RECORDED, frames=T, confidence=1.0),
        loss_of=lambda _: SquaredLoss(),
        random=random,
        batch=B,
        **options,  # type: ignore[arg-type]
    )
    weights = []
    for _ in range(updates):
        asked.append([])
        weights.append(float(objective.losses()["data_weight"]))
    return weights, [calls[0] for calls in asked]


def test_every_other_update_starts_on_policy() -> None:
    weights, asked = run(2 * STEPS)
    assert all(weight >= 0 for weight in weights[::2]) and max(weights) > 0
    assert not any(weights[1::2])  # no data there
    times = sorted(t for t, _ in asked[1::2])
    assert times == pytest.approx([i / STEPS for i in range(1, STEPS + 1)])
    about = [mean for t, mean in asked[1::2] if t < 0.9]  # at t = 1 it is pure noise
    assert about == pytest.approx([PREDICTED] * (STEPS - 1), abs=0.2)
    recorded = [mean for t, mean in asked[::2] if t < 0.9]
    assert recorded == pytest.approx([RECORDED] * len(recorded), abs=0.2)


@pytest.mark.parametrize("options", [{"on_policy": False}, {"guided": False}])
def test_without_rollouts_every_update_starts_at_a_recording(options: dict[str, object]) -> None:
    weights, asked = run(4, **options)
    assert all(weight > 0 for weight in weights)
    recorded = [mean for t, mean in asked if t < 0.9]
    assert recorded == pytest.approx([RECORDED] * len(recorded), abs=0.2)
