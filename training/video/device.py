"""Where training runs: device, precision, activation checkpointing, processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.diffusion.denoiser import Conditions, Forward
from model.video.attention import AttentionContext
from model.video.blocks import Layer
from training.distributed import SINGLE_PROCESS, World


@dataclass(frozen=True)
class Compute:
    """A device and how it is used.

    ``bf16``: run in bfloat16 under autocast, with float32 parameters: half the memory and several
    times the speed on a GPU, slower on most CPUs. ``recompute``: activation checkpointing
    (Chen et al. 2016, arXiv 1604.06174): a fraction of the memory, a third more time.
    """

    device: torch.device
    bf16: bool = False
    recompute: bool = False
    world: World = SINGLE_PROCESS

    @contextmanager
    def default_device(self) -> Iterator[None]:
        """Create new tensors on the device."""
        with torch.device(self.device):
            yield

    def generator(self, seed: int) -> torch.Generator:
        """A generator on the device, seeded differently in each process.

        torch's global seed is the same in all, so that they start with the same network.
        """
        torch.manual_seed(seed)
        return torch.Generator(self.device).manual_seed(self.world.seed(seed))

    def autocast(self, net: Forward) -> Forward:
        """``net`` in this precision, with float32 output."""
        if not self.bf16:
            return net

        def forward(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                return net(x_t, t, cond).float()

        return forward

    def checkpoint_layers(self, net: nn.Module) -> None:
        """Make the layers of ``net`` recompute their activations, in place, if asked to.

        Copy a network before this call: a later copy would run the original's layers.
        """
        if not self.recompute:
            return
        for layer in net.modules():
            if isinstance(layer, Layer):
                layer.forward = partial(_checkpointed, layer.forward)  # type: ignore[method-assign]


def _checkpointed(
    forward: Callable[[Tensor, Tensor, AttentionContext], Tensor],
    x: Tensor,
    time: Tensor,
    context: AttentionContext,
) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, time, context)
    return torch.as_tensor(checkpoint(forward, x, time, context, use_reentrant=False))
