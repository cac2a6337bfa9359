"""The network as one TorchScript graph: the engine for CPUs, with nothing to compile or install.

A step of the sampler is some two hundred small operations. Dispatched from Python each of them
waits for the interpreter, which the worker's drawing threads use too; a traced graph runs them all
in one call. Same kernels, same results, 15 % more video a second (`bench/animate.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class _Flat(nn.Module):
    """``net`` with its conditions as positional inputs, in the order of ``names``."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x_t: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        cond = dict(zip(self.names, conditions, strict=True))
        return torch.as_tensor(self.net(x_t, t, cond))


class TracedEngine:
    """Traces ``net`` on ``example``, two or more rows of ``x_t``, ``t`` and the conditions.

    Takes any batch. Raises ``ValueError`` when the graph does not reproduce ``net``, on the
    example or on its first row alone.
    """

    buckets: tuple[int, ...] = ()

    def __init__(self, net: nn.Module, example: Mapping[str, Tensor]) -> None:
        self._names = tuple(sorted(set(example) - {"x_t", "t"}))
        flat = _Flat(net.eval(), self._names).eval()
        inputs = self._ordered(example)
        with torch.inference_mode(), warnings.catch_warnings():
            # Tracing warns that shapes become constants; the check below shows that none matters.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(flat, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            self._graph = torch.jit.freeze(traced.eval())
            one = tuple(x[:1] for x in inputs)
            for rows in (inputs, one, one, inputs):  # the first runs specialise the graph
                gap = float((self._graph(*rows) - flat(*rows)).abs().max())
                if not gap < 1e-4:
                    raise ValueError(f"the traced network is off by {gap} on {len(rows[0])} rows")

    def __call__(self, **tensors: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.as_tensor(self._graph(*self._ordered(tensors)))

    def _ordered(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (tensors["x_t"], tensors["t"], *(tensors[name] for name in self._names))
