"""Networks that compute once, not at every sampler step, what depends on the conditions alone."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from model.diffusion.arrays import Array, no_gradients
from model.diffusion.denoiser import Conditions

C = TypeVar("C")


class SplitNet(Protocol[C]):
    """A network whose forward is ``denoise(x_t, t, context(cond))``.

    A context is a tuple of tensors in torch; an engine may have one of its own kind.
    """

    def context(self, cond: Conditions) -> C:
        """What `denoise` needs of the conditions. An engine's is valid until the next call."""
        ...

    def denoise(self, x_t: Array, t: Array, context: C) -> Array:
        """``x_t`` (B, ...), ``t`` (B,) and the context of the same B rows -> (B, ...)."""
        ...


class CachedContext(Generic[C]):
    """The forward of ``net``, which keeps its context for as long as the conditions are equal.

    The context is more than a third of an evaluation. For frozen networks, without gradients, one
    thread at a time. Conditions are kept by reference: do not change them in place between calls.
    """

    def __init__(self, net: SplitNet[C]) -> None:
        self.net = net
        self._cached: tuple[Conditions, C] | None = None

    def replace(self, net: SplitNet[Any]) -> None:
        """Run on ``net`` from the next call on. Never during a call."""
        self.net, self._cached = net, None

    def __call__(self, x_t: Array, t: Array, cond: Conditions) -> Array:
        """``x_t`` (B, ...), ``t`` (B,) and the conditions (B, ...) by name -> (B, ...)."""
        with no_gradients(x_t):
            if self._cached is None or not _equal(self._cached[0], cond):
                self._cached = dict(cond), self.net.context(cond)
            return self.net.denoise(x_t, t, self._cached[1])


def _equal(a: Conditions, b: Conditions) -> bool:
    """Most are the very same arrays; flags and scales are made anew at every step."""
    return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)


def _same(a: Array, b: Array) -> bool:
    return a is b or (a.shape == b.shape and bool((a == b).all()))
