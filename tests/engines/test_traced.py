"""The traced engine is the network, for any batch, and says so when it is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.base import Engine
from engines.eager import EagerEngine
from engines.registry import load_pipeline, motion_example
from engines.traced import TracedEngine
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


def test_a_network_that_depends_on_its_example_is_refused() -> None:
    class Counts(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            return x_t * len(x_t)

    with pytest.raises(ValueError, match="off by"):
        TracedEngine(Counts(), {"x_t": torch.ones(2, 3), "t": torch.ones(2)})


def test_the_shipped_student_runs_on_it() -> None:
    assert load_pipeline().info == load_eager().info
    with pytest.raises(ValueError, match="no student"):
        load_pipeline("nobody")
