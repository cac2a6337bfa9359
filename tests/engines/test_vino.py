"""The compiled engine is the network, for any batch, and says so when it is not."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn

from engines.eager import EagerEngine
from engines.registry import load_pipeline
from engines.subjects import motion_inputs
from engines.vino import VinoEngine
from model.audio.windows import AudioWindower
from model.conditioning import SAMPLE_RATE, Floats, Reference
from model.diffusion.denoiser import Conditions
from model.motion.net import MotionNet, NetConfig
from model.pipeline import WindowTask
from model.student_pipeline import StudentPipeline
from model.students import load_pipeline as load_eager

BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
# A share of the prediction's spread: bfloat16 has eight bits.
GAP = 0.05 if BFLOAT16 else 1e-4


def small(guided: bool) -> MotionNet:
    torch.manual_seed(0)
    return MotionNet(NetConfig(width=32, heads=2, blocks=2, guided=guided))


def agree(made: Tensor, truth: Tensor) -> bool:
    return float((made - truth).abs().max() / truth.std()) < GAP


@pytest.mark.parametrize("guided", [True, False])
def test_it_equals_the_network_for_any_batch(guided: bool) -> None:
    net = small(guided)
    made = VinoEngine(net, motion_inputs(2, guided))
    for batch in (1, 3, 8, 2):
        inputs = motion_inputs(batch, guided)
        assert agree(made(**inputs), EagerEngine(net)(**inputs))


def test_batched_equals_alone() -> None:
    made = VinoEngine(small(True), motion_inputs(2, True))
    inputs = motion_inputs(5, True)
    together = made(**inputs)
    for i in range(5):
        alone = made(**{name: rows[i : i + 1] for name, rows in inputs.items()})
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)


def test_conditions_are_looked_at_anew_when_they_change() -> None:
    net = small(True)
    made, eager = VinoEngine(net, motion_inputs(2, True)), EagerEngine(net)
    inputs = motion_inputs(2, True)
    for name in ("x_t", "t", "audio", "guidance", "prefix", "reference", "has_audio"):
        inputs[name] = 0.5 * inputs[name]
        for _ in range(2):
            again = {key: rows.clone() for key, rows in inputs.items()}
            assert agree(made(**again), eager(**inputs)), name


def test_one_preparation_serves_all_steps_of_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    made = VinoEngine(small(False), motion_inputs(2, False))
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
    made = VinoEngine(small(False), motion_inputs(2, False))
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
        VinoEngine(Counts(), example)


def test_the_shipped_student_runs_on_one() -> None:
    assert load_pipeline().info == load_eager().info
    with pytest.raises(ValueError, match="no student"):
        load_pipeline("nobody")


def walk(pipeline: StudentPipeline) -> Floats:
    """Two sessions' motion while they hear two seconds of noise that swells."""
    random = np.random.default_rng(0)
    sound = random.normal(0.0, 0.1, 2 * SAMPLE_RATE) * np.linspace(0.0, 1.0, 2 * SAMPLE_RATE)
    windower = AudioWindower()
    windows = windower.push(sound.astype(np.float32)) + windower.finish()
    reference = Reference(
        latent_space=pipeline.space.name,
        width=64,
        height=64,
        face_box=(0.0, 0.0, 64.0, 64.0),
        face_confidence=1.0,
        features=np.zeros(64, np.float32),
        arrays={},
    )
    states, made = [pipeline.start(seed) for seed in (1, 2)], []
    for window in windows:
        guidance, steps = pipeline.info.guidance, pipeline.info.steps
        tasks = [WindowTask(window, state, reference, guidance, steps) for state in states]
        results = pipeline.step(tasks)
        states = [state for _, state in results]
        made.append(np.stack([latents for latents, _ in results]))
    return np.concatenate(made, axis=1)


def test_the_shipped_student_moves_as_its_network_does() -> None:
    made, truth = walk(load_pipeline()), walk(load_eager())
    off = np.sqrt(((made - truth) ** 2).mean()) / truth.std()
    assert off < (0.05 if BFLOAT16 else 1e-3)
