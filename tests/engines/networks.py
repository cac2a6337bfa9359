"""A network that compiles in seconds, a backend that compiles nothing, and how they are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from engines.base import BACKENDS
from engines.example_inputs import ExampleModel
from engines.export import Graph, Program, Rows, conditions_of
from engines.select import StudentNet
from model.diffusion.denoiser import Conditions, Forward


class SmallNet(nn.Module):
    """A `SplitNet` whose context has its batch on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.condition, self.out = nn.Linear(4, 6), nn.Linear(9, 3)

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (self.condition(cond["c"].to(self.condition.weight.dtype)).T,)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        condition = context[0].T
        both = torch.cat([(x_t * t[:, None]).to(condition.dtype), condition], dim=1)
        return torch.as_tensor(self.out(both).tanh()).to(x_t.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def small_inputs(rows: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(rows)
    return {
        "x_t": torch.randn(rows, 3, generator=random),
        "t": torch.rand(rows, generator=random),
        "c": torch.randn(rows, 4, generator=random),
    }


def small_model() -> ExampleModel:
    return ExampleModel("small", SmallNet().eval().requires_grad_(False), small_inputs)


def small_student() -> StudentNet:
    return StudentNet(small_model().net, small_inputs, range(1, 5))


def predict(forward: Forward, rows: Rows) -> Tensor:
    """The prediction for ``rows`` of all inputs, as a pipeline asks for it."""
    with torch.inference_mode():
        return torch.as_tensor(forward(rows["x_t"], rows["t"], conditions_of(rows)))


def as_tuple(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else made


class _ExportOnly:
    """Compiles nothing: it runs what torch.export wrote."""

    def build(self, program: ExportedProgram, path: Path, *, graph: Graph, batch: range) -> None:
        torch.export.save(program, path)

    def load(self, path: Path) -> Program:
        module = torch.export.load(path).module()
        return lambda inputs: as_tuple(module(*inputs))


EXPORT_ONLY = replace(BACKENDS["compiled"], compiler=_ExportOnly())


class _Pickled:
    """Compiles nothing: it runs the function itself."""

    def build(self, program: ExportedProgram, path: Path, *, graph: Graph, batch: range) -> None:
        torch.save(graph.module, path)

    def load(self, path: Path) -> Program:
        module = torch.load(path, weights_only=False)
        return lambda inputs: as_tuple(module(*inputs))


# TensorRT as far as a CPU can show it.
FAKE_TENSORRT = replace(
    BACKENDS["tensorrt"],
    compiler=_Pickled(),
    packages=("torch",),
    devices=("cpu",),
    builder="torch",
)


def use_fake_tensorrt(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(BACKENDS, "tensorrt", FAKE_TENSORRT)
    patch.setattr("engines.build.export", lambda *_: None)  # takes a second, for nothing here
