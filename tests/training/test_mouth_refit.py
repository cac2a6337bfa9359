"""The least-squares refit of a student's mouth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.motion.checkpoint import MotionWeights
from model.motion.network import NetConfig
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, MOTION_DIM, MOUTH
from model.weights_file import weights_metadata
from training.data.batches import WindowSampler
from training.data.build import build_corpus
from training.data.corpus import Corpus
from training.guidance_distillation import LIMITS, DistillConfig, student_of
from training.losses import CLOSED_GAP
from training.mouth_refit import LeastSquares, OutputLayers, mixed_target, refit_mouth
from training.step_distillation import STEPS
from training.teacher import new_teacher

JAW = ACTIONS.index("jawOpen")
CONFIG = NetConfig(width=48, blocks=2, audio_layers=2)


@pytest.fixture(scope="module")
def corpus(grid_folder: Path) -> Corpus:
    return build_corpus(grid_folder, None, None, phones=grid_folder / "phones.json", seed=0)


def untrained(corpus: Corpus) -> MotionWeights:
    torch.manual_seed(0)
    teacher = new_teacher(corpus, CONFIG)
    net = student_of(teacher.net, DistillConfig()).eval()
    net.requires_grad_(False)
    metadata = weights_metadata("student", STEPS, 0, limits=LIMITS)
    return MotionWeights(net, teacher.mean, teacher.std, metadata)


def test_least_squares_finds_the_map_unless_drawn_to_the_former_one() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(MOTION_DIM, 5, generator=random, dtype=torch.float64)
    inputs = torch.randn(40, 8, 5, generator=random, dtype=torch.float64)
    for penalty, found in ((1e-9, truth), (1e9, torch.zeros_like(truth))):
        equations = LeastSquares(torch.zeros_like(truth), penalty)
        equations.add(inputs, inputs @ truth.T, torch.ones(40, 8))
        torch.testing.assert_close(equations.solve(), found, rtol=0, atol=1e-3)


def test_the_readout_has_no_part_in_closed_lips(corpus: Corpus) -> None:
    student = untrained(corpus)
    sampler = WindowSampler(
        corpus, student.mean, student.std, random=torch.Generator().manual_seed(0)
    )
    batch = sampler.draw(40)
    closed = batch.lip_gap < CLOSED_GAP
    assert closed.any() and not closed.all()
    for confidence in (1.0, 0.6):
        drawn = replace(batch, confidence=torch.full((40,), confidence))
        former = torch.zeros_like(batch.x0)
        near, weight = mixed_target(drawn, former, former)
        far, _ = mixed_target(drawn, former, former + 1)
        assert torch.equal((far != near).any(2), ~closed)
        assert weight[closed].min() > weight[~closed].max()


def test_refit_follows_speech_and_leaves_all_but_the_mouth(corpus: Corpus) -> None:
    student = untrained(corpus)
    before = {name: value.clone() for name, value in student.net.state_dict().items()}
    errors = [jaw_error(student, corpus)]
    refit_mouth(student, corpus, batches=4, random=torch.Generator().manual_seed(0))
    errors.append(jaw_error(student, corpus))
    assert errors[1] < 0.7 * errors[0]
    after = student.net.state_dict()
    others = ~torch.tensor([*MOUTH, *(MOTION_DIM - ACTION_COUNT) * [False]])
    for name, value in before.items():
        kept = others if name.startswith(("out.", "audio_to_motion.")) else slice(None)
        assert torch.equal(value[kept], after[name][kept]), name


def jaw_error(student: MotionWeights, corpus: Corpus) -> float:
    """Of one prediction from noise, against the recordings of unseen windows."""
    random = torch.Generator().manual_seed(1)
    batch = WindowSampler(corpus, student.mean, student.std, random=random).draw(60)
    cond = batch.conditions() | {"guidance": torch.tensor((2.0, 1.0)).expand(60, 2)}
    noise = torch.randn(batch.x0.shape, generator=random)
    layers = OutputLayers(student.net)
    made = student.net(noise, torch.ones(60), cond)
    tokens = student.net.audio_tokens(cond)
    linear = layers.inputs(tokens).double() @ layers.weights().T
    torch.testing.assert_close(linear.float(), made, rtol=1e-3, atol=1e-3)
    return float((made - batch.x0)[..., JAW].square().mean())
