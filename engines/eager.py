"""The plain engine: torch runs the network as it is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EagerEngine:
    """Runs ``net`` without building anything; takes any batch."""

    buckets: tuple[int, ...] = ()

    def __init__(self, net: nn.Module) -> None:
        self._net = net.eval()

    def __call__(self, **tensors: Tensor) -> Tensor:
        with torch.inference_mode():
            cond = {k: v for k, v in tensors.items() if k not in ("x_t", "t")}
            return torch.as_tensor(self._net(tensors["x_t"], tensors["t"], cond))
