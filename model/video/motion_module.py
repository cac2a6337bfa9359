"""Motion modules: where a video UNet mixes frames (AnimateDiff, arXiv 2307.04725)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from model.types import Floats
from model.video.attention import Attention, AttentionContext, FeedForward
from model.video.config import MotionConfig


class TimeAttention(nn.Module):
    """Self-attention over frames, with a positional encoding of time.

    Frames attend to each other and to those before them, if any (``AttentionContext.past``), which
    attend to nothing later. So the keys and values of the past depend neither on the frames after
    it nor on the sampler's step, and are computed once a window.
    """

    def __init__(self, width: int, heads: int, *, positions: int | None, place: str) -> None:
        super().__init__()
        self.place = place
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.positions: Tensor | None
        table = None if positions is None else torch.tensor(sinusoid_table(positions, width)[None])
        self.register_buffer("positions", table)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """``x`` (B, H · W, T, W) → the same shape."""
        past = None if context.past is None else context.past[self.place]
        normed = self.norm(x)
        if self.positions is not None:
            first = 0 if past is None else past.shape[2]
            last, longest = first + x.shape[2], self.positions.shape[1]
            if last > longest:
                raise ValueError(f"frames = {last}, expected at most {longest}")
            normed = normed + self.positions[:, first:last]
        normed = normed.flatten(0, 1)
        seen = self.attention.keys_values(normed)
        if context.kept is not None:
            context.kept[self.place] = seen.reshape(*x.shape[:3], -1)
        if past is not None:
            seen = torch.cat([past.flatten(0, 1), seen], dim=1)
        return x + self.attention(normed, seen).reshape(x.shape)


class TimeBlock(nn.Module):
    def __init__(self, width: int, config: MotionConfig, place: str) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            TimeAttention(width, config.heads, positions=config.positions, place=f"{place}.{i}")
            for i in range(config.attentions)
        )
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        for attention in self.attentions:
            x = attention(x, context)
        return torch.as_tensor(x + self.feed_forward(self.feed_norm(x)))


class TemporalTransformer(nn.Module):
    """Each pixel's features attend along time. Starts as the identity: its last layer is zero."""

    def __init__(self, width: int, config: MotionConfig, place: str) -> None:
        super().__init__()
        inner = width // config.width_divisor
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, inner)
        self.blocks = nn.ModuleList(
            TimeBlock(inner, config, f"{place}.{i}") for i in range(config.blocks)
        )
        self.proj_out = nn.Linear(inner, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """``x`` (B · T, C, H, W) → the same shape."""
        tokens = self.norm(x).unflatten(0, (-1, context.frames)).flatten(3)
        tokens = self.proj_in(tokens.permute(0, 3, 1, 2))  # (B, H · W, T, C)
        for block in self.blocks:
            tokens = block(tokens, context)
        moved = self.proj_out(tokens).permute(0, 2, 3, 1).flatten(0, 1)
        return x + moved.reshape(x.shape)


def sinusoid_table(positions: int, width: int) -> Floats:
    """(positions, width), sines in even and cosines in odd columns (arXiv 1706.03762, 3.5).

    In numpy: on the meta device torch would load its compiler for this, a second's work.
    """
    rates = np.exp(np.arange(0, width, 2) * (-np.log(10_000.0) / width))
    angles = np.arange(positions)[:, None] * rates
    both = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(positions, -1)
    return both[:, :width].astype(np.float32)
