"""Motion modules: the only place where a video UNet mixes frames (AnimateDiff, arXiv 2307.04725).

Knows: a pixel's features along time. Does not know: space, conditions or noise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from model.conditioning import Floats
from model.video.attention import Attention, Context, FeedForward
from model.video.config import MotionConfig


class TimeAttention(nn.Module):
    """Self-attention over frames, which are told their place in time."""

    def __init__(self, width: int, heads: int, positions: int | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.positions: Tensor | None
        table = None if positions is None else torch.tensor(sinusoid_table(positions, width)[None])
        self.register_buffer("positions", table)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` (M, T, W) → (M, T, W); ``mask`` (T, T): who may look (rows) at whom."""
        normed = self.norm(x)
        if self.positions is not None:
            frames, longest = x.shape[1], self.positions.shape[1]
            if frames > longest:
                raise ValueError(f"{frames} frames, this network knows at most {longest}")
            normed = normed + self.positions[:, :frames]
        return x + torch.as_tensor(self.attention(normed, normed, mask))


class TimeBlock(nn.Module):
    def __init__(self, width: int, config: MotionConfig) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            TimeAttention(width, config.heads, config.positions) for _ in range(config.attentions)
        )
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for attention in self.attentions:
            x = attention(x, mask)
        return torch.as_tensor(x + self.feed_forward(self.feed_norm(x)))


class TemporalTransformer(nn.Module):
    """Each pixel's features attend along time. Starts as the identity: its last layer is zero.

    Frames of the prefix look only at each other, so that what they become does not depend on the
    window and may be kept for all sampler steps of one window.
    """

    def __init__(self, width: int, config: MotionConfig) -> None:
        super().__init__()
        inner = width // config.width_divisor
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, inner)
        self.blocks = nn.ModuleList(TimeBlock(inner, config) for _ in range(config.blocks))
        self.proj_out = nn.Linear(inner, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """``x`` (B · T, C, H, W) → the same shape."""
        height, width = x.shape[-2:]
        tokens = self.norm(x).unflatten(0, (-1, context.frames))
        tokens = tokens.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B · H · W, T, C)
        tokens = self.proj_in(tokens)
        mask = prefix_mask(context.frames, context.prefix, x.device)
        for block in self.blocks:
            tokens = block(tokens, mask)
        moved = self.proj_out(tokens).unflatten(0, (-1, height, width))
        return x + torch.as_tensor(moved).permute(0, 3, 4, 1, 2).flatten(0, 1)


def prefix_mask(frames: int, prefix: int, device: torch.device) -> Tensor | None:
    """(frames, frames): every frame may look at the prefix, only new frames at new ones."""
    if prefix == 0:
        return None
    new = torch.arange(frames, device=device) >= prefix
    return new[:, None] | ~new[None, :]


def sinusoid_table(positions: int, width: int) -> Floats:
    """(positions, width), sines in even and cosines in odd columns (arXiv 1706.03762, 3.5).

    In numpy: on the meta device torch would load its compiler for this, a second's work.
    """
    rates = np.exp(np.arange(0, width, 2) * (-np.log(10_000.0) / width))
    angles = np.arange(positions)[:, None] * rates
    both = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(positions, -1)
    return both[:, :width].astype(np.float32)
