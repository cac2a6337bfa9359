"""The plain engines: torch runs the network as it is written."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from engines.export import SplitNet, Tensors
from engines.split import SplitEngine


class EagerEngine:
    """Runs ``net`` without building anything; takes any batch."""

    buckets: tuple[int, ...] = ()

    def __init__(self, net: nn.Module) -> None:
        self._net = net.eval()

    def __call__(self, **tensors: Tensor) -> Tensor:
        with torch.inference_mode():
            cond = {k: v for k, v in tensors.items() if k not in ("x_t", "t")}
            return torch.as_tensor(self._net(tensors["x_t"], tensors["t"], cond))


class EagerHalves(SplitEngine):
    """Runs ``net``, a `SplitNet`, in its two halves; ``names``: of its conditions."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self._net = cast(SplitNet, net.eval())
        self._told: Tensors = ()

    def prepare(self, conditions: Tensors) -> None:
        self._told = self._net.context(dict(zip(self._names, conditions, strict=True)))

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self._net.denoise(x_t, t, self._told)
