"""The traced engine is the network, for any batch, and says so when it is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.base import Engine
from engines.eager import EagerEngine
from engines.registry import load_pipeline, motion_example
from engines.traced import TracedEngine
from model.diffusion.denoiser import Conditions
from model.motion.net import MotionNet, NetConfig
from model.students import load_pipeline as load_eager


@pytest.mark.parametrize("guided", [True, False])
def test_it_equals_the_network_for_any_batch(guided: bool) -> None:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=32, heads=2, blocks=2, guided=guided))
    traced: Engine = TracedEngine(net, motion_example(2, guided))
    for batch in (1, 3, 8):
        inputs = motion_example(batch, guided)
        torch.testing.assert_close(traced(**inputs), EagerEngine(net)(**inputs))


def test_conditions_are_looked_at_anew_when_they_change() -> None:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=32, heads=2, blocks=2, guided=True))
    traced, eager = TracedEngine(net, motion_example(2, True)), EagerEngine(net)
    inputs = motion_example(2, True)
    for name in ("x_t", "t", "audio", "guidance", "prefix", "reference", "has_audio"):
        inputs[name] = 0.5 * inputs[name]
        for _ in range(2):
            again = {key: rows.clone() for key, rows in inputs.items()}
            torch.testing.assert_close(traced(**again), eager(**inputs))


def test_one_context_serves_all_steps_of_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    net = MotionNet(NetConfig(width=32, heads=2, blocks=2))
    traced = TracedEngine(net, motion_example(2, False))
    graph, rows = traced._prepare, []

    def prepare(*conditions: Tensor) -> tuple[Tensor, ...]:
        rows.append(len(conditions[0]))
        return tuple(graph(*conditions))

    monkeypatch.setattr(traced, "_prepare", prepare)
    inputs = motion_example(3, False)
    for t in (1.0, 0.6, 0.2):
        traced(**inputs | {"x_t": torch.randn(3, 8, 58), "t": torch.full((3,), t)})
    assert rows == [3]


def test_a_network_that_depends_on_its_example_is_refused() -> None:
    class Counts(nn.Module):
        def context(self, cond: Conditions) -> tuple[Tensor, ...]:
            return (cond["size"],)

        def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
            return x_t * len(x_t)

    example = {"x_t": torch.ones(2, 3), "t": torch.ones(2), "size": torch.ones(2)}
    with pytest.raises(ValueError, match="off by"):
        TracedEngine(Counts(), example)


def test_the_shipped_student_runs_on_it() -> None:
    assert load_pipeline().info == load_eager().info
    with pytest.raises(ValueError, match="no student"):
        load_pipeline("nobody")
