"""The network as two TorchScript graphs: the engine for CPUs, with nothing to compile or install.

A step of the sampler is some two hundred small operations. Dispatched from Python each of them
waits for the interpreter, which the worker's drawing threads use too; a traced graph runs them all
in one call. What the conditions alone decide is a graph of its own, run once for all steps of a
sampler: of six evaluations that spares nearly half (`bench/stages.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from model.diffusion.denoiser import Conditions

_TOLERANCE = 1e-4


class SplitNet(Protocol):
    """A network whose forward is ``denoise(x_t, t, context(cond))``."""

    def context(self, cond: Conditions) -> tuple[Tensor, ...]: ...

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor: ...


class _Context(nn.Module):
    """The first half, conditions as positional inputs in the order of ``names``."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *conditions: Tensor) -> tuple[Tensor, ...]:
        net = cast(SplitNet, self.net)
        return net.context(dict(zip(self.names, conditions, strict=True)))


class _Denoise(nn.Module):
    """The second half, the context as positional inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        return cast(SplitNet, self.net).denoise(x_t, t, context)


class TracedEngine:
    """Traces ``net``, a `SplitNet`, on ``example``: two or more rows of ``x_t``, ``t`` and the
    conditions.

    Takes any batch, from one thread at a time. Conditions are compared with those of the call
    before, so whoever changes one in place between two calls gets the old one's answer. Raises
    ``ValueError`` when the graphs do not reproduce ``net``, on the example or on its first row
    alone.
    """

    buckets: tuple[int, ...] = ()

    def __init__(self, net: nn.Module, example: Mapping[str, Tensor]) -> None:
        self._names = tuple(sorted(set(example) - {"x_t", "t"}))
        self._conditions: tuple[Tensor, ...] = ()
        self._context: tuple[Tensor, ...] = ()
        context, denoise = _Context(net.eval(), self._names), _Denoise(net)
        x_t, t, conditions = example["x_t"], example["t"], self._ordered(example)
        with torch.inference_mode():
            self._prepare = _traced(context, conditions)
            self._denoise = _traced(denoise, (x_t, t, *self._prepare(*conditions)))
            one = {name: rows[:1] for name, rows in example.items()}
            for rows in (example, one, one, example):  # the first runs specialise the graphs
                truth = denoise(rows["x_t"], rows["t"], *context(*self._ordered(rows)))
                gap = float((self(**rows) - truth).abs().max())
                if not gap < _TOLERANCE:
                    raise ValueError(f"the traced network is off by {gap} on {len(truth)} rows")

    def __call__(self, **tensors: Tensor) -> Tensor:
        conditions = self._ordered(tensors)
        with torch.inference_mode():
            if not _same(conditions, self._conditions):
                self._context, self._conditions = self._prepare(*conditions), conditions
            return torch.as_tensor(self._denoise(tensors["x_t"], tensors["t"], *self._context))

    def _ordered(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors[name] for name in self._names)


def _traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # Tracing warns that shapes become constants; the engine's check shows that none matters.
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(module.eval(), inputs, check_trace=False)  # type: ignore[no-untyped-call]
        return cast(torch.jit.ScriptModule, torch.jit.freeze(graph.eval()))


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Mostly they are the very same tensors; flags and scales are made anew at every step."""
    return len(some) == len(others) and all(
        a is b or torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )
