"""Where and how thriftily training computes: device, precision, memory, in which team."""

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
from training.distributed import ALONE, Team


@dataclass(frozen=True)
class Machine:
    """``bf16``: products in bfloat16, parameters and sums as they are: half the memory and several
    times the speed on a GPU, slower on most CPUs. ``recompute``: what a layer computes on the way
    is not kept for the way back but made again: a fraction of the memory, a third more time."""

    device: torch.device
    bf16: bool = False
    recompute: bool = False
    team: Team = ALONE

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """New tensors are on the device."""
        with torch.device(self.device):
            yield

    def random(self, seed: int) -> torch.Generator:
        """A generator whose numbers are on the device, others in each process; seeds torch's own
        as well, alike in all: they start with the same network."""
        torch.manual_seed(seed)
        return torch.Generator(self.device).manual_seed(self.team.seed(seed))

    def precise(self, net: Forward) -> Forward:
        """``net``, run in this machine's precision; what comes out is float32."""
        if not self.bf16:
            return net

        def forward(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                return net(x_t, t, cond).float()

        return forward

    def thrifty(self, net: nn.Module) -> None:
        """Lets ``net``, in place, recompute its layers if it should. A copy made afterwards would
        run the original's layers: make copies first."""
        if not self.recompute:
            return
        for layer in net.modules():
            if isinstance(layer, Layer):
                layer.forward = partial(_again, layer.forward)  # type: ignore[method-assign]


def _again(
    forward: Callable[[Tensor, Tensor, AttentionContext], Tensor],
    x: Tensor,
    time: Tensor,
    context: AttentionContext,
) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, time, context)
    return torch.as_tensor(checkpoint(forward, x, time, context, use_reentrant=False))
