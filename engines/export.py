"""A network as the functions that are compiled, with an example of what goes through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.diffusion.denoiser import Conditions
from model.video.reference_unet import ReferenceUNet
from model.video.vae import VAE

Example = Mapping[str, Tensor]  # a network's inputs by name, two rows or more
Tensors = tuple[Tensor, ...]
Program = Callable[[Tensors], Tensors]  # a function that was compiled


class SplitNet(Protocol):
    """A network whose forward is ``denoise(x_t, t, context(cond))``."""

    def context(self, cond: Conditions) -> Tensors: ...

    def denoise(self, x_t: Tensor, t: Tensor, context: Tensors) -> Tensor: ...


@dataclass(frozen=True)
class Graph:
    """``module(*inputs)`` gives a tensor or several. ``axes``: each input's batch axis.

    ``names`` tell the inputs apart in messages and manifests.
    """

    name: str
    module: nn.Module
    inputs: Tensors
    names: tuple[str, ...]
    axes: tuple[int, ...]

    def __call__(self, inputs: Tensors) -> Tensors:
        """What torch makes of it as it is written: the truth that engines are held to."""
        with torch.inference_mode():
            made = self.module(*inputs)
        return made if isinstance(made, tuple) else (made,)

    def rows(self, count: int) -> Tensors:
        """The example cut or repeated to ``count`` rows."""
        return tuple(
            x.index_select(axis, torch.arange(count, device=x.device) % x.shape[axis])
            for x, axis in zip(self.inputs, self.axes, strict=True)
        )


def graphs_of(net: nn.Module, example: Example) -> tuple[Graph, ...]:
    """The functions of ``net``: a denoiser's two halves, a reference UNet, a VAE's decoder.

    Raises ``ValueError`` for another network, and for an example of fewer than two rows.
    """
    rows = min(len(x) for x in example.values())
    if rows < 2:
        raise ValueError(f"an example of {rows} rows, expected two or more: they show the batch")
    net.eval()
    if isinstance(net, ReferenceUNet):
        return (_single("reference", _Reference(net), example),)
    if isinstance(net, VAE):
        return (_single("decode", _Decode(net), example),)
    return halves(net, example)


def halves(net: nn.Module, example: Example) -> tuple[Graph, Graph]:
    """``context`` of the conditions in order, ``denoise`` of x_t, t and the context's tensors."""
    if not (callable(getattr(net, "context", None)) and callable(getattr(net, "denoise", None))):
        raise ValueError(f"{type(net).__name__} has no halves context(cond) and denoise(…)")
    names = condition_names(example)
    inputs = tuple(example[name] for name in names)
    plain = Graph("context", _Context(net.eval(), names), inputs, names, (0,) * len(names))
    context = replace(plain, module=_Context(net, names, _passed_through(plain)))
    told, less = context(inputs), context(context.rows(len(example["t"]) - 1))
    own = tuple(f"told.{place}" for place in range(len(told)))
    return context, Graph(
        "denoise",
        _Denoise(net),
        (example["x_t"], example["t"], *(x.clone() for x in told)),
        ("x_t", "t", *own),
        (0, 0, *_batch_axes(told, less)),
    )


def condition_names(example: Example) -> tuple[str, ...]:
    """All that is in an example but ``x_t`` and ``t``, in order."""
    return tuple(sorted(set(example) - {"x_t", "t"}))


def exported(graph: Graph, batch: range) -> ExportedProgram:
    """``graph`` for all the batch sizes of ``batch``, in one program.

    Its inputs are ``graph``'s in the same order. Raises torch's own errors where it cannot.
    """
    first, last = batch[0], batch[-1]
    inputs = tuple(x.clone() for x in graph.rows(max(first, min(last, 3))))
    shapes = None
    if first < last:
        size = Dim("batch", min=first, max=last)
        shapes = (tuple({axis: size} for axis in graph.axes),)
    # Otherwise a batch of 1 would want a graph of its own: as a size, and where attention's faster
    # kernels look at a mask's. Which kernel runs is the backend's choice all the same.
    one_graph = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with one_graph, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return torch.export.export(_Flat(graph.module), inputs, dynamic_shapes=shapes)


def _single(name: str, module: nn.Module, example: Example) -> Graph:
    names = tuple(sorted(example))
    return Graph(name, module, tuple(example[n] for n in names), names, (0,) * len(names))


def _passed_through(graph: Graph) -> frozenset[int]:
    """Which of a function's outputs are inputs as they came, but for their precision."""
    made = enumerate(graph(graph.inputs))
    return frozenset(place for place, x in made if any(_same(x, y) for y in graph.inputs))


def _same(made: Tensor, given: Tensor) -> bool:
    return made.shape == given.shape and torch.equal(made, given.to(made.dtype))


def _batch_axes(some: Sequence[Tensor], fewer: Sequence[Tensor]) -> tuple[int, ...]:
    """Where the shapes differ that come of batches of different sizes."""
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
    """Copies the outputs ``passed``, in a way that no compiler sees through: an input handed on is
    refused by TensorRT, and OpenVINO leaves it unwritten at times."""

    def __init__(
        self, net: nn.Module, names: tuple[str, ...], passed: frozenset[int] = frozenset()
    ) -> None:
        super().__init__()
        self.net, self.names, self.passed = net, names, passed

    def forward(self, *conditions: Tensor) -> Tensors:
        net = cast(SplitNet, self.net)
        told = net.context(dict(zip(self.names, conditions, strict=True)))
        return tuple(
            torch.stack([x, x])[0] if place in self.passed else x for place, x in enumerate(told)
        )


class _Denoise(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor, *context: Tensor) -> Tensor:
        return cast(SplitNet, self.net).denoise(x_t, t, context)


class _Reference(nn.Module):
    """The bank, as one tensor a place, and the last features."""

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
    """Any function as one of a plain row of tensors, so that their shapes are told alike."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> object:
        return self.module(*inputs)
