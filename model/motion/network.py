"""The motion denoiser: a temporal transformer over a clean prefix and the noised new frames.

It predicts x0. Each condition enters separately, so each can be dropped: the prefix as tokens of
the sequence; audio and reference as contexts of cross-attention, replaced by learned null tokens;
the time modulates the norms (adaLN with one shared projection, PixArt-α, arXiv 2310.00426). A
student also takes each guidance scale as a token appended to the context that it scales (FADA,
arXiv 2412.16915, section 3.3).

`MotionNet.context` computes what depends on the conditions alone: the encoded audio, and every
block's keys and values of audio and reference, more than a third of the work. It is the same at
every sampler step; `MotionNet.denoise` is what remains to be done at each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio.log_mel import HOP, LOOKAHEAD, PREFIX
from model.diffusion.denoiser import Conditions
from model.diffusion.scale_token import ScaleToken
from model.motion.audio_encoder import AudioEncoder, WhisperBlocks
from model.portrait.blendshapes import MOTION_DIM, REFERENCE_DIM

SCALE_FEATURES = 32


@dataclass(frozen=True)
class NetConfig:
    """Sizes of a network, stored with its weights."""

    width: int = 192
    heads: int = 4
    blocks: int = 4
    reference_tokens: int = 4
    audio_layers: int = 8  # of an audio encoder trained from scratch
    whisper_blocks: int = 0  # if any: the encoder starts as Whisper tiny's first blocks instead
    guided: bool = False  # a student: takes the guidance scales as tokens
    embedded_scales: bool = False  # an ablation: takes them in the time embedding
    visemes: int = 0  # a teacher: classes of its viseme head


def sinusoid(values: Tensor, width: int, longest: float) -> Tensor:
    """(B,) -> (B, width) sines and cosines of ``values``, wavelengths 2π/1000 … ``longest``."""
    rates = torch.exp(
        torch.linspace(math.log(1000.0), math.log(2 * math.pi / longest), width // 2)
    ).to(values)
    angles = values[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _between(x: Tensor, first: int, frames: int) -> Tensor:
    """(B, T, W) -> (B, frames, W). A copy: an exported graph would specialise on a view's layout,
    which differs for a batch of one."""
    if frames == x.shape[1]:
        return x
    return x.index_select(1, torch.arange(first, first + frames, device=x.device))


class TokenAttention(nn.Module):
    """Multi-head attention over a context, with an additive bias per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> Tensor:
        """``context`` (B, S, W) -> (2, B, heads, S, W / heads): its keys, then its values."""
        both = self.key_value(context).unflatten(2, (2, self._heads, -1))
        return torch.as_tensor(both.permute(2, 0, 3, 1, 4))

    def forward(self, x: Tensor, keys_values: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` (B, T, W), `keys_values`, ``bias`` (heads, T, S) -> (B, T, W)."""
        q = self.query(x).unflatten(2, (self._heads, -1)).transpose(1, 2)
        k, v = keys_values.unbind(0)
        mask = None if bias is None else bias[None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.as_tensor(self.out(mixed.transpose(1, 2).flatten(2)))


class RelativeBias(nn.Module):
    """A learned bias per head and distance in frames, initialised to prefer near frames.

    Heads start between sharp (-1 per frame) and nearly flat, so audio and motion are aligned from
    the first training step.
    """

    def __init__(self, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        distance = torch.arange(queries)[:, None] - torch.arange(keys)[None, :]
        slopes = 2.0 ** -torch.arange(0, heads, dtype=torch.float32)
        offsets = torch.arange(-(keys - 1), queries, dtype=torch.float32)
        self.table = nn.Parameter(-slopes[:, None] * offsets.abs())
        self.register_buffer("_index", distance + keys - 1, persistent=False)
        self._index: Tensor

    def forward(self) -> Tensor:
        """(heads, queries, keys)"""
        return self.table[:, self._index]


class TransformerBlock(nn.Module):
    """Self-attention, audio attention, reference attention, feed-forward; each pre-normed."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.self_bias = RelativeBias(heads, PREFIX + HOP, PREFIX + HOP)
        self.audio_bias = RelativeBias(heads, PREFIX + HOP, PREFIX + HOP + LOOKAHEAD)
        self.self_attention = TokenAttention(width, heads)
        self.audio_attention = TokenAttention(width, heads)
        self.reference_attention = TokenAttention(width, heads)
        self.audio_norm = nn.LayerNorm(width)
        self.reference_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def context(self, audio: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the contexts (B, S, W) for `forward`."""
        return (
            self.audio_attention.keys_values(audio),
            self.reference_attention.keys_values(reference),
        )

    def forward(
        self, x: Tensor, audio: Tensor, reference: Tensor, *, time: Tensor, frames: int
    ) -> Tensor:
        """``x`` (B, T, W), `context`, ``time`` (B, 6, W) -> (B, frames, W): the last frames."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (time + self.modulation)[
            :, :, None
        ].unbind(1)
        shape = x.shape[-1:]
        normed = F.layer_norm(x, shape) * (1 + scale_1) + shift_1
        everywhere = self.self_attention.keys_values(normed)
        # Earlier frames serve as keys and values only: their output is not needed.
        first = x.shape[1] - frames
        x, normed = _between(x, first, frames), _between(normed, first, frames)
        x = x + (1 + gate_1) * self.self_attention(
            normed, everywhere, self.self_bias()[:, -frames:]
        )
        bias = self.audio_bias()[:, -frames:]
        # A scale's token has no position in time, so its bias is zero everywhere.
        bias = F.pad(bias, (0, audio.shape[3] - bias.shape[2]))
        x = x + self.audio_attention(self.audio_norm(x), audio, bias)
        x = x + self.reference_attention(self.reference_norm(x), reference, None)
        normed = F.layer_norm(x, shape) * (1 + scale_2) + shift_2
        return torch.as_tensor(x + (1 + gate_2) * self.feed_forward(normed))


def _scale_embedding(scales: Tensor) -> Tensor:
    return sinusoid(scales / 10.0, SCALE_FEATURES, 4.0)


class MotionNet(nn.Module):
    """Predicts the clean new frames from noised ones; see the module's docstring.

    Latents are in the caller's precision; the network runs in that of its weights.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, config.reference_tokens
        self.frames = nn.Linear(MOTION_DIM, width)
        self.prefix = nn.Linear(MOTION_DIM, width)
        self.positions = nn.Parameter(0.02 * torch.randn(PREFIX + HOP, width))
        self.audio_encoder: nn.Module = (
            WhisperBlocks(width, config.whisper_blocks)
            if config.whisper_blocks
            else AudioEncoder(width, config.audio_layers)
        )
        self.audio_proj = nn.Linear(width, width)
        self.null_audio = nn.Parameter(0.02 * torch.randn(width))
        self.reference = nn.Sequential(
            nn.Linear(REFERENCE_DIM, width), nn.SiLU(), nn.Linear(width, tokens * width)
        )
        self.null_reference = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.time_modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.time_modulation.weight)
        nn.init.zeros_(self.time_modulation.bias)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, MOTION_DIM)
        self.audio_to_motion = nn.Linear(width, MOTION_DIM)
        nn.init.zeros_(self.audio_to_motion.weight)
        nn.init.zeros_(self.audio_to_motion.bias)
        if config.visemes:
            self.viseme_head = nn.Linear(width, config.visemes)
        if config.guided:
            self.audio_scale = ScaleToken(width, SCALE_FEATURES, embed=_scale_embedding)
            self.reference_scale = ScaleToken(width, SCALE_FEATURES, embed=_scale_embedding)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """``x_t`` (B, HOP, 58), ``t`` (B,) -> x0_hat (B, HOP, 58).

        ``cond``: ``prefix`` (B, PREFIX, 58), ``audio`` (B, PREFIX + HOP + LOOKAHEAD, ROW_DIM),
        ``reference`` (B, 64), ``has_audio`` and ``has_reference`` (B,) of 0 or 1, and for a
        student ``guidance`` (B, 2): audio scale, reference scale. ``audio_tokens``, if given, are
        used in place of the audio encoder's output for ``audio``.
        """
        return self.denoise(x_t, t, self.context(cond))

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        """What `denoise` needs of the conditions of `forward`: tensors of various shapes."""
        audio = self.audio_tokens(cond)
        dtype = audio.dtype
        audio_motion = self.audio_to_motion(_between(audio, PREFIX, HOP))
        reference = self.reference(cond["reference"].to(dtype))
        reference = reference.unflatten(1, self.null_reference.shape)
        reference = torch.where(
            cond["has_reference"][:, None, None] > 0.5, reference, self.null_reference
        )
        around = self.positions + self.audio_proj(_between(audio, 0, PREFIX + HOP))
        prefix = self.prefix(cond["prefix"].to(dtype)) + around[:, :PREFIX]
        embedded: list[Tensor] = []
        if self.config.guided:
            s_aud, s_ref = cond["guidance"].unbind(1)
            tokens = self.audio_scale(s_aud), self.reference_scale(s_ref)
            if self.config.embedded_scales:
                embedded = [(tokens[0] + tokens[1])[:, 0]]
            else:
                audio = torch.cat([audio, tokens[0]], dim=1)
                reference = torch.cat([reference, tokens[1]], dim=1)
        blocks = (cast(TransformerBlock, block) for block in self.blocks)
        contexts = [part for block in blocks for part in block.context(audio, reference)]
        return audio_motion, prefix, around[:, PREFIX:], *contexts, *embedded

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """``x_t`` (B, HOP, 58), ``t`` (B,) and the `context` of the same rows -> x0_hat."""
        audio_motion, prefix, around, *contexts = context
        x = torch.cat([prefix, self.frames(x_t.to(prefix.dtype)) + around], dim=1)
        embedded = self.time(sinusoid(t, 64, 4.0).to(prefix.dtype))
        if self.config.embedded_scales:
            embedded = embedded + contexts[-1]
        time = self.time_modulation(F.silu(embedded)).unflatten(1, (6, -1))
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            frames = HOP if i == last else PREFIX + HOP
            x = block(x, contexts[2 * i], contexts[2 * i + 1], time=time, frames=frames)
        return torch.as_tensor(audio_motion + self.out(self.norm(x))).to(x_t.dtype)

    def audio_tokens(self, cond: Conditions) -> Tensor:
        """(B, PREFIX + HOP + LOOKAHEAD, W): a window's audio, null tokens if dropped."""
        tokens = cond.get("audio_tokens")
        if tokens is None:
            tokens = self.audio_encoder(cond["audio"].to(self.null_audio.dtype))
        return torch.where(cond["has_audio"][:, None, None] > 0.5, tokens, self.null_audio)

    def audio_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Linear estimates from `audio_tokens` alone: motion (B, PREFIX + HOP, 58) and viseme
        logits (B, PREFIX + HOP, visemes).

        The prediction only adds to that motion. Losses on both train the audio encoder from every
        frame, at any noise level.
        """
        tokens = tokens[:, : PREFIX + HOP]
        return self.audio_to_motion(tokens), self.viseme_head(tokens)
