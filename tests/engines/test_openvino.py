"""The compiled engine is the network, for any batch, and says so when it is not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from engines.base import as_forward
from engines.eager import EagerEngine
from engines.example_inputs import motion_inputs
from engines.models import fastest, load_pipeline
from engines.motion_error import LARGEST, motion_error
from engines.openvino import OpenVINOEngine
from model.diffusion.denoiser import Conditions, Forward
from model.models import WEIGHTS, MotionEngine, motion_pipeline
from model.models import load_pipeline as load_eager
from model.motion.checkpoint import MotionWeights, load_weights
from model.motion.network import MotionNet, NetConfig
from model.motion.rollout import MotionOnly, roll_out
from model.portrait.blendshapes import REFERENCE_DIM
from model.types import Floats

GAP = 1e-4  # of the prediction's spread, in single precision: what is tested on every machine


def small(guided: bool) -> MotionNet:
    torch.manual_seed(0)
    return MotionNet(NetConfig(width=32, heads=2, blocks=2, guided=guided))


def agree(made: Tensor, truth: Tensor) -> bool:
    return float((made - truth).abs().max() / truth.std()) < GAP


@pytest.mark.parametrize("guided", [True, False])
def test_it_equals_the_network_for_any_batch(guided: bool) -> None:
    net = small(guided)
    made = OpenVINOEngine(net, motion_inputs(2, guided))
    for batch in (1, 3, 8, 2):
        inputs = motion_inputs(batch, guided)
        assert agree(made(**inputs), EagerEngine(net)(**inputs))


def test_batched_equals_alone() -> None:
    made = OpenVINOEngine(small(True), motion_inputs(2, True))
    inputs = motion_inputs(5, True)
    together = made(**inputs)
    for i in range(5):
        alone = made(**{name: rows[i : i + 1] for name, rows in inputs.items()})
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)


def test_conditions_are_looked_at_anew_when_they_change() -> None:
    net = small(True)
    made, eager = OpenVINOEngine(net, motion_inputs(2, True)), EagerEngine(net)
    inputs = motion_inputs(2, True)
    for name in ("x_t", "t", "audio", "guidance", "prefix", "reference", "has_audio"):
        inputs[name] = 0.5 * inputs[name]
        for _ in range(2):
            again = {key: rows.clone() for key, rows in inputs.items()}
            assert agree(made(**again), eager(**inputs)), name


def test_one_preparation_serves_all_steps_of_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    made = OpenVINOEngine(small(False), motion_inputs(2, False))
    prepare, rows = made.prepare, []

    def counted(conditions: tuple[Tensor, ...]) -> None:
        rows.append(len(conditions[0]))
        prepare(conditions)

    monkeypatch.setattr(made, "prepare", counted)
    inputs = motion_inputs(3, False)
    for t in (1.0, 0.6, 0.2):
        made(**inputs | {"x_t": torch.randn(3, 8, 58), "t": torch.full((3,), t)})
    assert rows == [3]


def test_results_are_the_callers_own() -> None:
    made = OpenVINOEngine(small(False), motion_inputs(2, False))
    first = made(**motion_inputs(2, False))
    kept = first.clone()
    made(**motion_inputs(2, False) | {"x_t": torch.ones(2, 8, 58)})
    torch.testing.assert_close(first, kept)


def test_a_network_that_depends_on_its_example_is_refused() -> None:
    class Counts(nn.Module):
        def context(self, cond: Conditions) -> tuple[Tensor, ...]:
            return (cond["size"],)

        def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
            return x_t * len(x_t) + 0.0 * (t + context[0])[:, None]

    example = {"x_t": torch.ones(2, 3), "t": torch.ones(2), "size": torch.ones(2)}
    with pytest.raises(ValueError, match="off by"):
        OpenVINOEngine(Counts(), example)


def test_the_shipped_student_runs_on_one() -> None:
    engine, eager = load_pipeline(), load_eager()
    assert (engine.name, engine.metadata) == (eager.name, eager.metadata)
    with pytest.raises(ValueError, match="no student"):
        load_pipeline("nobody")


def shipped(name: str) -> MotionWeights:
    return load_weights(WEIGHTS / f"{name}.safetensors")


def speech_motion(
    weights: MotionWeights, engine: MotionEngine | None, examples: Path
) -> list[Floats]:
    """Two sessions' motion while they hear the first two seconds of the example speech."""
    samples, rate = soundfile.read(examples / "speech.wav", dtype="float32")
    pipeline = motion_pipeline("tested", weights, MotionOnly(), engine)
    rest = np.zeros(REFERENCE_DIM, np.float32)
    return roll_out(
        pipeline,
        [samples[: 2 * rate]] * 2,
        [rest] * 2,
        [1, 2],
        pipeline.metadata.guidance,
        pipeline.metadata.steps,
        progress=False,
    )


@pytest.mark.parametrize("name", ["motion-fast", "motion-balanced"])
def test_a_shipped_student_in_single_precision_is_its_network(name: str, examples: Path) -> None:
    def single(weights: MotionWeights) -> Forward:
        guided = weights.net.config.guided
        return as_forward(OpenVINOEngine(weights.net, motion_inputs(2, guided), precision="fp32"))

    weights = shipped(name)
    made, truth = (speech_motion(weights, engine, examples) for engine in (single, None))
    for mine, theirs in zip(made, truth, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.parametrize("name", ["motion-fast", "motion-balanced"])
def test_the_engine_that_is_chosen_moves_a_face_as_the_network_does(
    name: str, examples: Path
) -> None:
    """Whatever precision this processor is fast in: speech that the choice was not made on."""
    weights = shipped(name)
    made, truth = (speech_motion(weights, engine, examples) for engine in (fastest, None))
    error = np.sqrt(np.mean((np.stack(made) - np.stack(truth)) ** 2)) / np.std(truth)
    assert error < 2 * LARGEST


def test_a_precision_that_moves_the_face_elsewhere_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As bfloat16 does to motion-balanced on some processors; here by a twentieth everywhere."""

    class Coarse(OpenVINOEngine):
        def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
            made = super().denoise(x_t, t)
            return made if self.precision == "fp32" else made * 1.05

        def check(self, *_: object) -> None:
            """One evaluation on random inputs would not show it."""

    monkeypatch.setattr("engines.select.precisions", lambda: ("bf16", "fp32"))
    monkeypatch.setattr("engines.select.OpenVINOEngine", Coarse)
    weights = shipped("motion-fast")
    with caplog.at_level(logging.INFO):
        forward = fastest(weights)
    assert "engine not used, openvino bf16: motion is off by" in caplog.text
    assert "engine: openvino fp32, since" in caplog.text
    assert motion_error(weights, forward) < 1e-3
