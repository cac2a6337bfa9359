"""Stand-ins for training data and losses, and ``fada train`` as a function."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fada.cli.train import add_arguments, run
from model.portrait.blendshapes import MOTION_DIM

PREFIX = 4


def fada_train(*words: object) -> int:
    """``fada train`` with ``words``, in this process."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(w) for w in words]))


@dataclass(frozen=True)
class ConstantBatch:
    """A `WindowBatch` with one value in all frames."""

    x0: Tensor
    prefix: Tensor
    clean_prefix: Tensor
    confidence: Tensor

    def conditions(self) -> dict[str, Tensor]:
        on = torch.ones(len(self.x0))
        return {"prefix": self.prefix, "has_audio": on, "has_reference": on}


@dataclass(frozen=True)
class ConstantWindows:
    """A `WindowSource` of recordings of ``value`` with ``frames`` new frames."""

    value: float
    frames: int
    confidence: float

    def draw_run(self, size: int, windows: int) -> Sequence[ConstantBatch]:
        before = torch.zeros(size, PREFIX, MOTION_DIM)
        x0 = torch.full((size, self.frames, MOTION_DIM), self.value)
        confidence = torch.full((size,), self.confidence)
        return [ConstantBatch(x0, before, before, confidence)] * windows


class SquaredLoss:
    """A `WindowLoss`: mean squared error. Records which of a frame's numbers were off."""

    def __init__(self) -> None:
        self.off: list[Tensor] = []

    def __call__(self, x0_hat: Tensor, target: Tensor, before: Tensor | None = None) -> Tensor:
        error = (x0_hat - target).square()
        self.off.append(error.mean((0, 1)) > 1e-8)
        return error.mean((1, 2))

    def closure(self, x0_hat: Tensor, data: Tensor) -> Tensor:
        return torch.zeros(len(data))
