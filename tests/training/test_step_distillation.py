"""Whose word counts when a student learns to take two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.motion.checkpoint import DEFAULT_GUIDANCE
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from training.step_distillation import DATA_SHARE, GAINS, PLACES, FewerSteps

T = 8
AUDIO, FACE = 0.1, 0.01  # what the teacher's branches differ by
CYCLE = 2 * len(PLACES)  # updates in which every kind has its turn


@dataclass
class Recording:
    x0: Tensor
    prefix: Tensor
    clean_prefix: Tensor
    trust: Tensor

    def conditions(self) -> dict[str, Tensor]:
        on = torch.ones(len(self.x0))
        return {"prefix": self.prefix, "has_audio": on, "has_reference": on}


class Recordings:
    """Of no motion."""

    def __init__(self, trust: float) -> None:
        self._trust = trust

    def draw_run(self, size: int, windows: int) -> Sequence[Recording]:
        before, trust = torch.zeros(size, 4, MOTION_DIM), torch.full((size,), self._trust)
        return [Recording(torch.zeros(size, T, MOTION_DIM), before, before, trust)] * windows


class Squared:
    """Remembers which of a frame's numbers were off."""

    def __init__(self) -> None:
        self.off: list[Tensor] = []

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        error = (x0_hat - target).square()
        self.off.append(error.mean((0, 1)) > 1e-8)
        return error.mean((1, 2))

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        return torch.zeros(len(data))


def teacher(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
    said = FACE * cond["has_reference"] + AUDIO * cond["has_audio"]
    return said[:, None, None].expand_as(x_t)


def constant(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
    return torch.ones_like(x_t)


def hesitant(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Says more the clearer x_t is, so that three steps say more than one."""
    return (1 - t)[:, None, None].expand_as(x_t)


def objective(student: object, former: object, loss: Squared, trust: float = 0.6) -> FewerSteps:
    random = torch.Generator().manual_seed(0)
    warmth, recordings = torch.ones(MOTION_DIM), Recordings(trust)
    return FewerSteps(student, former, teacher, recordings, loss, warmth, random)  # type: ignore[arg-type]


def mouth() -> Tensor:
    some = torch.zeros(MOTION_DIM, dtype=torch.bool)
    some[:ACTION_COUNT] = torch.tensor(MOUTH)
    return some


def test_a_student_that_adds_the_teachers_guidance_to_what_it_was_misses_nothing() -> None:
    def student(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        push = GAINS * (cond["guidance"] - torch.tensor(DEFAULT_GUIDANCE))
        turned = push @ torch.tensor((AUDIO, FACE))
        return constant(x_t, t, cond) + turned[:, None, None]

    taught = objective(student, constant, Squared())
    for _ in range(CYCLE):
        losses = taught.losses()
        assert all(float(value) < 1e-6 for value in losses.values()), losses


def test_a_student_that_turns_nothing_misses_all_of_both_scales() -> None:
    losses = objective(constant, constant, Squared()).losses()
    assert float(losses["plain"]) < 1e-10
    for name in ("audio_missed", "reference_missed"):
        assert float(losses[name]) == pytest.approx(1)


def test_the_mouth_learns_what_is_said_at_once_and_the_rest_what_three_steps_come_to() -> None:
    loss = Squared()
    taught = objective(hesitant, hesitant, loss)
    for place in PLACES:
        taught.losses()
        plain, _ = loss.off[-2:]
        # at a recording nothing is asked but what it said before
        assert torch.equal(plain, torch.zeros_like(plain) if place is None else ~mouth())


def test_a_tracked_mouth_has_a_word() -> None:
    def student(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return torch.where(mouth(), 1 - DATA_SHARE, 1.0).expand_as(x_t)

    tracked, inferred = (objective(student, constant, Squared(), trust) for trust in (1.0, 0.6))
    assert float(tracked.losses()["plain"]) < 1e-10 < float(inferred.losses()["plain"])
