"""Attention of the video UNets: over pixels, over the reference's features, over audio tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Notes = dict[str, Tensor]  # place in the network → what a layer leaves there


@dataclass(frozen=True)
class AttentionContext:
    """What the layers attend to besides their own features; N = B · T rows of frames.

    ``audio`` (N, S, W_audio); ``references``: place → (B, L, C); ``has_reference`` (B,) bool, or
    None: always; ``past``: place → (B, H · W, P, 2 C) keys and values of frames before these.
    ``bank`` and ``kept`` are filled on the way, where given: with the features that a reference
    hands over, and with the keys and values that later frames will look back at.
    """

    frames: int = 1
    audio: Tensor | None = None
    references: Mapping[str, Tensor] | None = None
    has_reference: Tensor | None = None
    past: Mapping[str, Tensor] | None = None
    bank: Notes | None = None
    kept: Notes | None = None


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762); queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width or width, width, bias=False)
        self.value = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> Tensor:
        """(N, S, W_context) → (N, S, 2 W)."""
        return torch.cat([self.key(context), self.value(context)], dim=2)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` (N, L, W) over ``keys_values`` (N, S, 2 W) → (N, L, W).

        ``mask`` is boolean and broadcasts to (N, heads, L, S).
        """
        q, k, v = (
            tokens.unflatten(2, (self._heads, -1)).transpose(1, 2)
            for tokens in (self.query(x), *keys_values.chunk(2, dim=2))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.as_tensor(self.out(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Gated GELU (Shazeer 2020, arXiv 2002.05202), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 8 * width)
        self.shrink = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.expand(x).chunk(2, dim=-1)
        return torch.as_tensor(self.shrink(values * F.gelu(gates)))


class SpatialTransformer(nn.Module):
    """One frame's pixels attend to each other, to the reference and to the audio.

    The features that a reference UNet hands over and those that a denoising UNet joins them to are
    the same: the input of self-attention, after its norm (AnimateAnyone, arXiv 2311.17117).
    ``audio_width`` None leaves audio attention out.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        groups: int,
        place: str,
        audio_width: int | None,
        audio_gain: float,
    ) -> None:
        super().__init__()
        self.place, self._gain = place, audio_gain
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.audio_attention = None
        if audio_width is not None:
            self.audio_norm = nn.LayerNorm(width)
            self.audio_attention = Attention(width, heads, audio_width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """``x`` (N, C, H, W) → the same shape."""
        size = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (N, H·W, C)
        normed = self.self_norm(tokens)
        if context.bank is not None:
            context.bank[self.place] = normed
        tokens = tokens + self._look_around(normed, context)
        if self.audio_attention is not None and context.audio is not None:
            sounds = self.audio_attention.keys_values(context.audio)
            tokens = tokens + self._gain * self.audio_attention(self.audio_norm(tokens), sounds)
        tokens = tokens + self.feed_forward(self.feed_norm(tokens))
        return torch.as_tensor(
            x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (size[0], size[1])))
        )

    def _look_around(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        attention = self.self_attention
        seen = attention.keys_values(tokens)
        if context.references is None:
            return torch.as_tensor(attention(tokens, seen))
        # The reference is the same for all frames of a clip: project it once.
        reference = attention.keys_values(context.references[self.place].to(tokens))
        mask = None
        if context.has_reference is not None:
            visible = context.has_reference[:, None].expand(-1, reference.shape[1])
            own = torch.ones_like(visible[:, :1]).expand(-1, tokens.shape[1])
            mask = repeat_rows(torch.cat([own, visible], dim=1), context.frames)[:, None, None]
        seen = torch.cat([seen, repeat_rows(reference, context.frames)], dim=1)
        return torch.as_tensor(attention(tokens, seen, mask))


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """(B, ...) → (B · rows, ...), each entry ``rows`` times in a row."""
    return x[:, None].expand(-1, rows, *(-1,) * (x.ndim - 1)).flatten(0, 1)
