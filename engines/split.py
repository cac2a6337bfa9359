"""What engines of a network in two halves have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from engines.export import Example, SplitNet


class SplitEngine(ABC):
    """An `engines.base.Engine` that prepares once for all steps of a sampler: of six evaluations
    that spares nearly half the work (`bench/stages.py`).

    Takes any batch, from one thread at a time. Conditions are compared with those of the call
    before, so whoever changes one in place between two calls gets the old one's answer.
    """

    buckets: tuple[int, ...] = ()

    def __init__(self, names: tuple[str, ...]) -> None:
        """``names``: the conditions', in the order in which `prepare` takes them."""
        self._names = names
        self._conditions: tuple[Tensor, ...] = ()

    @abstractmethod
    def prepare(self, conditions: tuple[Tensor, ...]) -> None:
        """Run the first half, and keep what it gives."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Run the second half on what was prepared."""

    def __call__(self, **tensors: Tensor) -> Tensor:
        conditions = tuple(tensors[name] for name in self._names)
        with torch.inference_mode():
            if not _same(conditions, self._conditions):
                self.prepare(conditions)
                self._conditions = conditions
            return self.denoise(tensors["x_t"], tensors["t"])

    def check(self, net: nn.Module, example: Example, tolerance: float) -> None:
        """Raises ``ValueError`` unless the engine gives what ``net`` does, to ``tolerance``.

        On the example and on its first row alone; the first runs also settle the graphs.
        """
        one = {name: rows[:1] for name, rows in example.items()}
        split = cast(SplitNet, net)
        for rows in (example, one, one, example):
            with torch.inference_mode():
                truth = split.denoise(rows["x_t"], rows["t"], split.context(rows))
            gap = float((self(**rows) - truth).abs().max())
            if not gap < tolerance:
                raise ValueError(f"the engine's network is off by {gap} on {len(truth)} rows")


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Mostly they are the very same tensors; flags and scales are made anew at every step."""
    return len(some) == len(others) and all(
        a is b or torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )
