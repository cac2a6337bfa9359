"""Teacher and student, trained for a few steps on made-up data by the command's own code."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.models import motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.network import NetConfig
from model.motion.rollout import MotionOnly
from model.portrait.blendshapes import ACTIONS, MOTION_DIM
from tests.training.helpers import fada_train
from tests.training.test_whisper_init import made_up_whisper, write_ctranslate2
from training.data.build import build_corpus
from training.data.corpus import Corpus, LipGap
from training.guidance_distillation import LIMITS, StudentObjective
from training.losses import MotionLoss, dimension_weights
from training.sample_weighting import MAX_DATA_WEIGHT, AdaptiveSampleWeight
from training.teacher import TeacherInit, draw_timesteps, drop_conditions, new_teacher

JAW = ACTIONS.index("jawOpen")


@cache
def corpus_of(data: Path) -> Corpus:
    return build_corpus(data, None, None, phones=data / "phones.json", seed=0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of two updates and of a network that learns nothing do not matter.

    All runs read one corpus, which is built once.
    """

    def small_teacher(corpus: Corpus, config: NetConfig) -> TeacherInit:
        return new_teacher(corpus, replace(config, width=48, blocks=2))

    monkeypatch.setattr("fada.cli.train.new_teacher", small_teacher)
    monkeypatch.setattr("fada.cli.train.build_corpus", lambda data, *_, **__: corpus_of(data))
    for size in ("teacher.AUDIO_ENCODER_BATCH", "teacher.BATCH", "step_distillation.BATCH"):
        monkeypatch.setattr(f"training.{size}", 6)
    small = partial(StudentObjective, batch=6)
    monkeypatch.setattr("training.guidance_distillation.StudentObjective", small)


# TensorBoard's writer thread outlives the test by a moment
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_train_teacher_resume_and_distil(grid_folder: Path, tmp_path: Path) -> None:
    data = ("--data", grid_folder, "--threads", 1, "--minutes", 5)
    teacher = tmp_path / "teacher"
    assert fada_train("teacher", *data, "--out", teacher, "--steps", 3) == 0
    assert load_weights(teacher / "teacher.safetensors").metadata["trained_steps"] == 3
    assert fada_train("teacher", *data, "--out", teacher, "--steps", 5) == 0
    weights = teacher / "teacher.safetensors"
    assert load_weights(weights).metadata["trained_steps"] == 5

    out = tmp_path / "student"
    assert fada_train("student", *data, "--out", out, "--steps", 2, "--teacher", weights) == 0
    student = load_weights(out / "student.safetensors")
    assert student.net.config.guided and student.metadata["steps"] == 6
    torch.testing.assert_close(student.mean, load_weights(weights).mean)
    known = motion_pipeline("new", student, MotionOnly()).metadata
    assert LIMITS[0][0] <= known.guidance.audio <= LIMITS[0][1]
    assert list(out.glob("events.out.tfevents.*"))

    words = ("--start", out / "student.safetensors", "--temperature", 1.2, 1.5, "--steps", 6)
    two = tmp_path / "two"
    assert fada_train("step-distill", *data, "--out", two, "--teacher", weights, *words) == 0
    fewer = load_weights(two / "student.safetensors")
    assert fewer.metadata["temperature"] == [1.2, 1.5]
    assert motion_pipeline("new", fewer, MotionOnly()).metadata.nfe_per_window == 2

    words = (
        "student-multibranch",
        *data,
        "--out",
        tmp_path / "three",
        "--steps",
        2,
        "--teacher",
        weights,
    )
    assert fada_train(*words) == 0
    balanced = load_weights(tmp_path / "three" / "student.safetensors")
    assert motion_pipeline("new", balanced, MotionOnly()).metadata.nfe_per_window == 12


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_teacher_continues_with_whispers_encoder(grid_folder: Path, tmp_path: Path) -> None:
    data = ("--data", grid_folder, "--threads", 1, "--minutes", 5, "--steps", 1)
    assert fada_train("teacher", *data, "--out", tmp_path / "old") == 0
    old = tmp_path / "old" / "teacher.safetensors"
    write_ctranslate2(tmp_path / "model.bin", made_up_whisper())
    words = ("--start", old, "--whisper", tmp_path / "model.bin", "--whisper-blocks", 2)
    words += ("--bf16",)
    assert fada_train("teacher", *data, *words, "--out", tmp_path / "new") == 0
    new = load_weights(tmp_path / "new" / "teacher.safetensors")
    assert new.net.config.whisper_blocks == 2
    torch.testing.assert_close(new.mean, load_weights(old).mean)
    encoder = load_weights(tmp_path / "new" / "audio-encoder" / "audio-encoder.safetensors").net
    for a, b in zip(
        encoder.audio_encoder.parameters(), new.net.audio_encoder.parameters(), strict=True
    ):
        assert torch.equal(a, b)  # denoising leaves the encoder as it is
    fada_train("audio-encoder", *data, *words, "--out", tmp_path / "early", "--seed", 1)
    ends = (
        tmp_path / "early" / "audio-encoder.safetensors",
        tmp_path / "new/audio-encoder/audio-encoder.safetensors",
    )
    mix = (
        "--start",
        tmp_path / "new" / "teacher.safetensors",
        "--interpolate",
        *ends,
        "--between",
        0.25,
    )
    assert fada_train("denoising", *data, *mix, "--out", tmp_path / "mixed") == 0
    early, late, mixed = (
        load_weights(path).net.audio_encoder.state_dict()["encoder.conv_2.weight"]
        for path in (*ends, tmp_path / "mixed" / "teacher.safetensors")
    )
    torch.testing.assert_close(mixed, 0.75 * early + 0.25 * late)
    assert not torch.equal(early, late)
    with pytest.raises(ValueError, match="not stages of one encoder"):
        bad = ("--start", old, "--interpolate", *ends)
        fada_train("denoising", *data, *bad, "--out", tmp_path / "none")
    words = ("--teacher", tmp_path / "new" / "teacher.safetensors", "--out", tmp_path / "student")
    assert fada_train("student", *data, *words) == 0
    half = ("--teacher", tmp_path / "new" / "teacher.safetensors", "--temperature", 1.2, 1.5)
    half += ("--init-interp", 0.5)
    assert fada_train("student", *data, *half, "--out", tmp_path / "half") == 0
    first, whole, kept = (
        load_weights(path).net.frames.weight
        for path in (
            tmp_path / "new" / "teacher.safetensors",
            tmp_path / "student" / "student.safetensors",
            tmp_path / "half" / "student.safetensors",
        )
    )
    metadata = load_weights(tmp_path / "half" / "student.safetensors").metadata
    assert metadata["temperature"] == [1.2, 1.5]
    torch.testing.assert_close(kept, (first + whole) / 2, rtol=2e-3, atol=1e-4)  # half precision
    assert not torch.equal(first, whole)
    with pytest.raises(ValueError, match="--init-interp 2.0"):
        fada_train("student", *data, *half[:6], 2.0, "--out", tmp_path / "none")
    with pytest.raises(ValueError, match="--temperature 1.2 3.0"):
        fada_train("student", *data, *half[:4], 3.0, "--out", tmp_path / "none")
    with pytest.raises(ValueError, match="no teacher"):
        start = tmp_path / "student" / "student.safetensors"
        fada_train("teacher", *data, "--start", start, "--out", tmp_path / "none")


def test_incompatible_flags_are_rejected(grid_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--temperature is for a motion student, not teacher"):
        fada_train("teacher", "--data", grid_folder, "--out", tmp_path, "--temperature", 1, 1.2)
    with pytest.raises(ValueError, match="needs --teacher"):
        fada_train("student", "--data", grid_folder, "--out", tmp_path)
    with pytest.raises(ValueError, match="step distillation needs --start"):
        words = ("step-distill", "--data", grid_folder, "--teacher", tmp_path)
        fada_train(*words, "--out", tmp_path)
    with pytest.raises(ValueError, match="--interpolate is for"):
        interpolate = ("--interpolate", tmp_path, tmp_path)
        fada_train("teacher", "--data", grid_folder, "--out", tmp_path, *interpolate)
    with pytest.raises(ValueError, match="more than 0"):
        fada_train("teacher", "--data", grid_folder, "--out", tmp_path, "--minutes", 0)
    with pytest.raises(ValueError, match="holds no"):
        fada_train("teacher", "--data", tmp_path, "--out", tmp_path)


def loss() -> MotionLoss:
    weights = torch.zeros(52)
    weights[JAW] = 0.5
    return MotionLoss(
        torch.zeros(MOTION_DIM),
        torch.full((MOTION_DIM,), 0.1),
        LipGap(weights, 0.0),
        dimension_weights(),
    )


def test_loss_is_zero_at_the_target_and_large_where_lips_should_meet() -> None:
    closed, open_ = torch.zeros(1, 8, MOTION_DIM), torch.zeros(1, 8, MOTION_DIM)
    open_[..., JAW] = 2.0  # a gap of 0.1
    off = torch.zeros(1, 8, MOTION_DIM)
    off[..., JAW] = 1.0
    assert loss()(closed, closed).item() == 0
    assert loss()(closed + off, closed).item() > 2 * loss()(open_ + off, open_).item()


def test_loss_prefers_a_constant_error_to_a_trembling_one() -> None:
    target = torch.zeros(1, 8, MOTION_DIM)
    constant = torch.full((1, 8, MOTION_DIM), 0.1)
    trembling = constant * torch.tensor([1.0, -1.0] * 4)[None, :, None]
    assert loss()(constant, target).item() < loss()(trembling, target).item()


@given(distance=st.floats(0, 50), confidence=st.floats(0, 1), t=st.floats(0.01, 1))
def test_data_counts_less_the_further_it_is_from_the_teacher(
    distance: float, confidence: float, t: float
) -> None:
    weigh = AdaptiveSampleWeight()
    times, confidences = torch.full((3,), t), torch.full((3,), confidence)
    clear, at_defaults = torch.ones(3), torch.zeros(3)
    known = {"signal": clear, "confidence": confidences, "scale_distance": at_defaults}
    weigh(torch.ones(3), times, **known)
    distances = torch.tensor([distance, distance + 1, 1e4])
    near, mid, far = weigh(distances, times, **known).tolist()
    assert MAX_DATA_WEIGHT * confidence + 1e-6 >= near >= mid >= far >= 0
    assert far < 0.01


def test_data_counts_less_away_from_the_default_scales() -> None:
    weigh = AdaptiveSampleWeight()
    same = torch.ones(3)
    away = torch.tensor([0.0, 1.0, 3.0])
    weights = weigh(same, same, signal=same, confidence=same, scale_distance=away).tolist()
    assert weights[0] > 2 * weights[1] > 4 * weights[2] > 0


def test_data_hidden_by_noise_does_not_count() -> None:
    weigh = AdaptiveSampleWeight()
    same = torch.ones(3)
    signal = torch.tensor([1.0, 0.5, 0.0])
    weights = weigh(same, same, signal=signal, confidence=same, scale_distance=0 * same).tolist()
    assert weights[0] == pytest.approx(2 * weights[1]) and weights[0] > 0 and weights[2] == 0


def test_each_guidance_branch_gets_its_share() -> None:
    audio, reference = drop_conditions(20_000, torch.Generator().manual_seed(0))
    both_off = ((audio == 0) & (reference == 0)).float().mean()
    reference_only = ((audio == 0) & (reference == 1)).float().mean()
    assert both_off == pytest.approx(0.08, abs=0.01)
    assert reference_only == pytest.approx(0.10, abs=0.01)
    assert ((audio == 1) & (reference == 1)).float().mean() == pytest.approx(0.79, abs=0.01)


def test_times_are_late_more_often_and_never_zero() -> None:
    t = draw_timesteps(10_000, torch.Generator().manual_seed(0))
    assert t.min() > 0 and t.max() <= 1
    assert t.mean() == pytest.approx(2 / 3, abs=0.01)
