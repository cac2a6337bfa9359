"""Stable Diffusion's autoencoder: pixels ↔ latents (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.video.blocks import ResnetBlock
from model.video.config import VAEConfig

EPS = 1e-6


class PixelAttention(nn.Module):
    """Self-attention of one head over all pixels, with a residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) → the same shape."""
        height, width = x.shape[-2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, H·W, C)
        mixed = F.scaled_dot_product_attention(
            self.query(tokens), self.key(tokens), self.value(tokens)
        )
        mixed = self.out(mixed[:, 0]).transpose(1, 2).unflatten(2, (height, width))
        return x + torch.as_tensor(mixed)


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = ResnetBlock(width, width, groups=groups, eps=EPS, time_width=None)
        self.attention = PixelAttention(width, groups)
        self.second = ResnetBlock(width, width, groups=groups, eps=EPS, time_width=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.attention(self.first(x))))


class VAELevel(nn.Module):
    """The residual blocks of one resolution, and the convolution to the next, if any."""

    def __init__(
        self, width_in: int, width: int, *, blocks: int, groups: int, resize: nn.Conv2d | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResnetBlock(width if j else width_in, width, groups=groups, eps=EPS, time_width=None)
            for j in range(blocks)
        )
        self.resize = resize


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        width = widths[0]
        for i, wide in enumerate(widths):
            resize = nn.Conv2d(wide, wide, 3, stride=2) if i < len(widths) - 1 else None
            self.levels.append(
                VAELevel(width, wide, blocks=config.layers, groups=groups, resize=resize)
            )
            width = wide
        self.mid = Middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in cast(Iterable[VAELevel], self.levels):
            for block in level.blocks:
                x = block(x)
            if level.resize is not None:
                x = level.resize(F.pad(x, (0, 1, 0, 1)))  # at the right and below only
        return torch.as_tensor(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.channels[::-1], config.groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = Middle(widths[0], groups)
        self.levels = nn.ModuleList()
        width = widths[0]
        for i, wide in enumerate(widths):
            resize = nn.Conv2d(wide, wide, 3, padding=1) if i < len(widths) - 1 else None
            self.levels.append(
                VAELevel(width, wide, blocks=config.layers + 1, groups=groups, resize=resize)
            )
            width = wide
        self.norm_out = nn.GroupNorm(groups, width, eps=EPS)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in cast(Iterable[VAELevel], self.levels):
            for block in level.blocks:
                x = block(x)
            if level.resize is not None:
                x = level.resize(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return torch.as_tensor(self.conv_out(F.silu(self.norm_out(x))))


class VAE(nn.Module):
    """`encode` gives the mean of the latents' distribution: a portrait needs no sampling noise.

    Both directions take and return the caller's precision and run in that of the weights.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.conv_moments = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.conv_latent = nn.Conv2d(latent, latent, 1)

    @property
    def stride(self) -> int:
        """Pixels a latent, each way."""
        return self.config.stride

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def encode(self, pixels: Tensor) -> Tensor:
        """``pixels`` (B, 3, H, W), -1 … 1 → latents (B, 4, H / 8, W / 8), scaled."""
        stride = self.config.stride
        if pixels.shape[-2] % stride or pixels.shape[-1] % stride:
            raise ValueError(
                f"a picture of {pixels.shape[-1]} × {pixels.shape[-2]}, "
                f"expected multiples of {stride}"
            )
        moments = self.conv_moments(self.encoder(pixels.to(self.conv_moments.weight.dtype)))
        mean, _ = moments.chunk(2, dim=1)
        return self.config.scale * mean.to(pixels.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`, but for what was lost: (B, 3, H, W), about -1 … 1."""
        plain = (latents / self.config.scale).to(self.conv_latent.weight.dtype)
        return torch.as_tensor(self.decoder(self.conv_latent(plain))).to(latents.dtype)
