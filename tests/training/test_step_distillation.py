"""Which targets a student of two steps learns from: teacher, former student, recording."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions, Forward
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from model.weights_file import DEFAULT_GUIDANCE
from tests.training.helpers import ConstantWindows, SquaredLoss
from training.sample_weighting import MAX_DATA_WEIGHT
from training.step_distillation import (
    GAINS,
    START_STEPS,
    StepDistillationObjective,
)

T = 8
AUDIO, FACE = 0.1, 0.01  # differences between the teacher's branches
CYCLE = 2 * len(START_STEPS)  # updates that cover every kind


def teacher(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    value = FACE * cond["has_reference"] + AUDIO * cond["has_audio"]
    return value[:, None, None].expand_as(x_t)


def constant(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    return torch.ones_like(x_t)


def hesitant(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    """Predicts more the less noise x_t holds, so that three steps give more than one."""
    return (1 - t)[:, None, None].expand_as(x_t)


def objective(
    student: Forward,
    former: Forward,
    loss: SquaredLoss,
    *,
    confidence: float = 0.6,
    supervision: str = "teacher",
    recording: float = 0.0,
) -> StepDistillationObjective:
    return StepDistillationObjective(
        student,
        former,
        teacher,
        windows=ConstantWindows(recording, frames=T, confidence=confidence),
        loss=loss,
        temperature=torch.ones(MOTION_DIM),
        random=torch.Generator().manual_seed(0),
        supervision=supervision,
    )


def mouth() -> Tensor:
    some = torch.zeros(MOTION_DIM, dtype=torch.bool)
    some[:ACTION_COUNT] = torch.tensor(MOUTH)
    return some


def test_former_student_plus_teacher_guidance_has_no_loss() -> None:
    def student(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        push = GAINS * (cond["guidance"] - torch.tensor(DEFAULT_GUIDANCE))
        effect = push @ torch.tensor((AUDIO, FACE))
        return constant(x_t, t, cond) + effect[:, None, None]

    distilled = objective(student, constant, SquaredLoss())
    for _ in range(CYCLE):
        losses = distilled.losses()
        assert all(float(value) < 1e-6 for value in losses.values()), losses


def test_ignoring_the_scales_misses_their_whole_effect() -> None:
    losses = objective(constant, constant, SquaredLoss()).losses()
    assert float(losses["plain"]) < 1e-10
    for name in ("audio_missed", "reference_missed"):
        assert float(losses[name]) == pytest.approx(1)


def test_mouth_targets_take_one_evaluation_and_others_three_steps() -> None:
    loss = SquaredLoss()
    distilled = objective(hesitant, hesitant, loss)
    for done in START_STEPS:
        distilled.losses()
        plain, _ = loss.off[-2:]
        # From a recording the target is the former student's prediction.
        assert torch.equal(plain, torch.zeros_like(plain) if done is None else ~mouth())


def mouth_of(share: float) -> Forward:
    """A student whose mouth is ``share`` of the way from the former's 1 to the recording's 0."""

    def student(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return torch.where(mouth(), 1 - share, 1.0).expand_as(x_t)

    return student


def test_a_share_of_the_mouth_comes_from_the_recording() -> None:
    for supervision, share in (("fixed", MAX_DATA_WEIGHT / 2), ("data", 1.0)):
        distilled = objective(mouth_of(share), constant, SquaredLoss(), supervision=supervision)
        losses = distilled.losses()
        assert float(losses["plain"]) < 1e-10
        assert float(losses["data_weight"]) == pytest.approx(share)


def test_the_recording_weighs_more_where_less_noise_hides_it() -> None:
    distilled = objective(constant, constant, SquaredLoss(), supervision="mixed")
    weights = [float(distilled.losses()["data_weight"]) for _ in START_STEPS]
    by_start = dict(zip(START_STEPS, weights, strict=True))
    assert by_start[None] == 0  # a noised recording: the former student alone
    assert 0 <= by_start[0] < 1e-3 < by_start[1] < MAX_DATA_WEIGHT


def test_confident_recordings_weigh_more() -> None:
    tracked, inferred = (
        objective(
            constant, constant, SquaredLoss(), confidence=confidence, supervision="any-noise"
        ).losses()["data_weight"]
        for confidence in (1.0, 0.6)
    )
    assert float(tracked) > float(inferred) > 0
