"""Attention of the video UNets: over pixels, over the reference's features, over audio tokens.

Knows: tokens, contexts and masks. Does not know: where a context comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Context:
    """What the layers look at besides their own features; N = B · T rows of frames.

    ``audio`` (N, S, W_audio); ``references``: place → (B, L, C); ``has_reference`` (B,) bool, or
    None: always. ``prefix`` of the ``frames`` T come before the window.
    """

    frames: int = 1
    audio: Tensor | None = None
    references: Mapping[str, Tensor] | None = None
    has_reference: Tensor | None = None
    prefix: int = 0


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762); queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width or width, width, bias=False)
        self.value = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        joined: Tensor | None = None,
        rows: int = 1,
    ) -> Tensor:
        """``x`` (N, L, W) over ``context`` (N, S, W_context) → (N, L, W).

        ``joined`` (N / rows, R, W_context) are more tokens to look at, the same for all ``rows`` of
        one clip: projected once a clip, not once a row. ``mask`` is boolean and broadcasts to
        (N, heads, L, S + R).
        """
        keys, values = self.key(context), self.value(context)
        if joined is not None:
            keys = torch.cat([keys, repeat_rows(self.key(joined), rows)], dim=1)
            values = torch.cat([values, repeat_rows(self.value(joined), rows)], dim=1)
        q, k, v = (
            tokens.unflatten(2, (self._heads, -1)).transpose(1, 2)
            for tokens in (self.query(x), keys, values)
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
    """One frame's pixels look at each other, at the reference and at the sound.

    The features that a reference UNet hands over and those that a denoising UNet joins them to are
    the same: the input of self-attention, after its norm (AnimateAnyone, arXiv 2311.17117).
    ``audio_width`` None leaves audio attention out.
    """

    def __init__(
        self,
        width: int,
        heads: int,
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

    def forward(self, x: Tensor, context: Context, bank: dict[str, Tensor] | None = None) -> Tensor:
        """``x`` (N, C, H, W) → the same shape. With ``bank`` the features are left in it."""
        size = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (N, H·W, C)
        normed = self.self_norm(tokens)
        if bank is not None:
            bank[self.place] = normed
        tokens = tokens + self._look_around(normed, context)
        if self.audio_attention is not None and context.audio is not None:
            heard = self.audio_attention(self.audio_norm(tokens), context.audio)
            tokens = tokens + self._gain * heard
        tokens = tokens + self.feed_forward(self.feed_norm(tokens))
        return torch.as_tensor(
            x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (size[0], size[1])))
        )

    def _look_around(self, tokens: Tensor, context: Context) -> Tensor:
        if context.references is None:
            return torch.as_tensor(self.self_attention(tokens, tokens))
        reference = context.references[self.place].to(tokens)
        mask = None
        if context.has_reference is not None:
            seen = context.has_reference[:, None].expand(-1, reference.shape[1])
            own = torch.ones_like(seen[:, :1]).expand(-1, tokens.shape[1])
            mask = repeat_rows(torch.cat([own, seen], dim=1), context.frames)[:, None, None]
        return torch.as_tensor(self.self_attention(tokens, tokens, mask, reference, context.frames))


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """(B, ...) → (B · rows, ...), each entry ``rows`` times in a row."""
    return x[:, None].expand(-1, rows, *(-1,) * (x.ndim - 1)).flatten(0, 1)
