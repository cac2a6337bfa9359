"""The eager engines give what the network gives, for any batch."""

from __future__ import annotations

import pytest
import torch

from engines.base import as_forward
from engines.eager import EagerEngine, EagerHalves
from model.motion.network import MotionNet, NetConfig

CONDITIONS = ("audio", "has_audio", "has_reference", "prefix", "reference")


@pytest.mark.parametrize("halves", [False, True])
def test_an_engine_in_a_forwards_place_changes_nothing(halves: bool) -> None:
    torch.manual_seed(0)
    net = MotionNet(NetConfig()).eval()
    forward = as_forward(EagerHalves(net, CONDITIONS) if halves else EagerEngine(net))
    for batch in (1, 3, 3):
        x, t = torch.randn(batch, 8, 58), torch.rand(batch)
        cond = {
            "prefix": torch.randn(batch, 12, 58),
            "audio": torch.randn(batch, 24, 256),
            "reference": torch.randn(batch, 64),
            "has_audio": torch.ones(batch),
            "has_reference": torch.ones(batch),
        }
        made = forward(x, t, cond)
        torch.testing.assert_close(made, net(x, t, cond))
        assert not made.requires_grad
