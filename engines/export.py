"""A network as the functions that are compiled, each with an example of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.diffusion.cached_context import SplitNet
from model.video.reference_unet import ReferenceUNet
from model.video.vae import VAE

Rows = Mapping[str, Tensor]  # all inputs of a network by name, (B, ...) each
Tensors = tuple[Tensor, ...]
Program = Callable[[Tensors], Tensors]  # a compiled function


@dataclass(frozen=True)
class Graph:
    """``module(*inputs)`` gives a tensor or several. ``axes``: the batch axis of each input.

    ``names`` of the inputs are for messages and manifests.
    """

    name: str
    module: nn.Module
    inputs: Tensors
    names: tuple[str, ...]
    axes: tuple[int, ...]

    def __call__(self, inputs: Tensors) -> Tensors:
        """The outputs in plain torch: what engines are compared with."""
        with torch.inference_mode():
            made = self.module(*inputs)
        return made if isinstance(made, tuple) else (made,)

    def rows(self, count: int) -> Tensors:
        """The example cut or repeated to ``count`` rows."""
        return tuple(
            x.index_select(axis, torch.arange(count, device=x.device) % x.shape[axis])
            for x, axis in zip(self.inputs, self.axes, strict=True)
        )


def graphs_of(net: nn.Module, example: Rows) -> tuple[Graph, ...]:
    """The functions of a `SplitNet`, of a reference UNet or of a VAE's decoder.

    Raises ``ValueError`` for any other network, and for an example of fewer than two rows.
    """
    rows = min(len(x) for x in example.values())
    if rows < 2:
        raise ValueError(f"the example has {rows} row(s), expected two or more to find batch axes")
    net.eval()
    if isinstance(net, ReferenceUNet):
        return (_single("reference", _Reference(net), example),)
    if isinstance(net, VAE):
        return (_single("decode", _Decode(net), example),)
    return split_graphs(net, example)


def split_graphs(net: nn.Module, example: Rows) -> tuple[Graph, Graph]:
    """``context`` of the conditions in order, ``denoise`` of x_t, t and the context's tensors.

    Raises ``ValueError`` for a network that is no `SplitNet`.
    """
    if not (callable(getattr(net, "context", None)) and callable(getattr(net, "denoise", None))):
        raise ValueError(f"{type(net).__name__} lacks context(cond) and denoise(x_t, t, context)")
    names = tuple(conditions_of(example))
    inputs = tuple(example[name] for name in names)
    plain = Graph("context", _Context(net.eval(), names), inputs, names, (0,) * len(names))
    context = replace(plain, module=_Context(net, names, _passed_through(plain)))
    tensors, fewer = context(inputs), context(context.rows(len(example["t"]) - 1))
    return context, Graph(
        "denoise",
        _Denoise(net),
        (example["x_t"], example["t"], *(x.clone() for x in tensors)),
        ("x_t", "t", *(f"context.{place}" for place in range(len(tensors)))),
        (0, 0, *_batch_axes(tensors, fewer)),
    )


def conditions_of(rows: Rows) -> dict[str, Tensor]:
    """All inputs but ``x_t`` and ``t``, in the order in which ``context`` takes them."""
    return {name: rows[name] for name in sorted(rows) if name not in ("x_t", "t")}


def export(graph: Graph, batch: range) -> ExportedProgram:
    """One program of ``graph`` for all the sizes of ``batch``; its inputs are in the same order.

    Raises torch's own errors where it cannot be exported.
    """
    first, last = batch[0], batch[-1]
    inputs = tuple(x.clone() for x in graph.rows(max(first, min(last, 3))))
    shapes = None
    if first < last:
        size = Dim("batch", min=first, max=last)
        shapes = (tuple({axis: size} for axis in graph.axes),)
    # By default torch specialises a batch of 1, and attention's fast kernels specialise the size of
    # a mask. The backend chooses its own kernels anyway.
    one_graph = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with one_graph, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return torch.export.export(_Flat(graph.module), inputs, dynamic_shapes=shapes)


def _single(name: str, module: nn.Module, example: Rows) -> Graph:
    names = tuple(sorted(example))
    return Graph(name, module, tuple(example[n] for n in names), names, (0,) * len(names))


def _passed_through(graph: Graph) -> frozenset[int]:
    """The outputs of a function that are inputs unchanged, except for their precision."""
    made = enumerate(graph(graph.inputs))
    return frozenset(place for place, x in made if any(_same(x, y) for y in graph.inputs))


def _same(made: Tensor, given: Tensor) -> bool:
    return made.shape == given.shape and torch.equal(made, given.to(made.dtype))


def _batch_axes(some: Sequence[Tensor], fewer: Sequence[Tensor]) -> tuple[int, ...]:
    """The axis of each tensor whose size differs between batches of different sizes."""
    axes = []
    for place, (a, b) in enumerate(zip(some, fewer, strict=True)):
        differ = [i for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if n != m]
        if len(differ) != 1:
            raise ValueError(
                f"tensor {place} of the context has shapes {tuple(a.shape)} and {tuple(b.shape)} "
                "in batches of different sizes, expected one axis to differ"
            )
        axes += differ
    return tuple(axes)


class _Context(nn.Module):
    """Copies the outputs ``passed`` in a way that compilers do not optimise away: TensorRT refuses
    an input as an output, and OpenVINO sometimes leaves it unwritten."""

    def __init__(
        self, net: nn.Module, names: tuple[str, ...], passed: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        self.net, self.names, self.passed = net, names, passed

    def forward(self, *conditions: Tensor) -> Tensors:
        net = cast(SplitNet[Tensors], self.net)
        context = net.context(dict(zip(self.names, conditions, strict=True)))
        return tuple(
            torch.stack([x, x])[0] if place in self.passed else x for place, x in enumerate(context)
        )


class _Denoise(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        return cast(SplitNet[Tensors], self.net).denoise(x_t, t, context)


class _Reference(nn.Module):
    """The last features, then the bank as one tensor a place."""

    def __init__(self, net: ReferenceUNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, latents: Tensor) -> Tensors:
        features, bank = self.net(latents)
        return features, *bank.values()


class _Decode(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


class _Flat(nn.Module):
    """Takes any number of tensors, so that dynamic shapes are given in the same way for all."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> object:
        return self.module(*inputs)
