"""Where a student's training starts: at noised recordings, and where its own steps lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.diffusion.schedule import CosineSchedule
from training.guidance_distillation import STEPS, StudentObjective

B, T, D = 8, 16, 64
SAID, RECORDED = 1.0, -1.0


@dataclass
class Still:
    """Recordings of one value."""

    x0: Tensor
    prefix: Tensor
    clean_prefix: Tensor
    trust: Tensor

    def conditions(self) -> dict[str, Tensor]:
        return {"prefix": self.prefix, "has_audio": self.trust, "has_reference": self.trust}


class Recordings:
    def draw_run(self, size: int, windows: int) -> Sequence[Still]:
        before = torch.zeros(size, 4, D)
        one = Still(torch.full((size, T, D), RECORDED), before, before, torch.ones(size))
        return [one] * windows


class Squared:
    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        return (x0_hat - target).square().mean((1, 2))

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        return torch.zeros(len(data))


def run(updates: int, **options: object) -> tuple[list[float], list[tuple[float, float]]]:
    """The data's weight of each update, and for the teacher's first call in each the time and the
    mean of x_t over α: about whose frames it was asked."""
    asked: list[list[tuple[float, float]]] = []

    def teacher(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        alpha, _ = CosineSchedule().alpha_sigma(t)
        at = int(alpha.argmax())
        asked[-1].append((float(t[at]), float(x_t[at].mean() / alpha[at])))
        return torch.zeros_like(x_t)

    def student(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return torch.full_like(x_t, SAID)

    random = torch.Generator().manual_seed(0)
    objective = StudentObjective(
        student,
        teacher,
        Recordings(),
        lambda _: Squared(),
        random,
        batch=B,
        **options,  # type: ignore[arg-type]
    )
    weights = []
    for _ in range(updates):
        asked.append([])
        weights.append(float(objective.losses()["data_weight"]))
    return weights, [calls[0] for calls in asked]


def test_every_other_update_starts_where_the_students_own_steps_lead() -> None:
    weights, asked = run(2 * STEPS)
    assert all(weight >= 0 for weight in weights[::2]) and max(weights) > 0
    assert not any(weights[1::2])  # there the data says nothing
    times = sorted(t for t, _ in asked[1::2])
    assert times == pytest.approx([i / STEPS for i in range(1, STEPS + 1)])
    about = [mean for t, mean in asked[1::2] if t < 0.9]  # at t = 1 it is all noise
    assert about == pytest.approx([SAID] * (STEPS - 1), abs=0.2)
    recorded = [mean for t, mean in asked[::2] if t < 0.9]
    assert recorded == pytest.approx([RECORDED] * len(recorded), abs=0.2)


@pytest.mark.parametrize("options", [{"own_paths": False}, {"guided": False}])
def test_without_it_every_update_starts_at_a_recording(options: dict[str, object]) -> None:
    weights, asked = run(4, **options)
    assert all(weight > 0 for weight in weights)
    recorded = [mean for t, mean in asked if t < 0.9]
    assert recorded == pytest.approx([RECORDED] * len(recorded), abs=0.2)
