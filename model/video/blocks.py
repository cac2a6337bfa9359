"""What both video UNets are built of: residual blocks, layers, levels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.video.attention import AttentionContext, SpatialTransformer
from model.video.config import UNetConfig
from model.video.motion_module import TemporalTransformer


class ResnetBlock(nn.Module):
    """Two convolutions with a residual (arXiv 1512.03385); ``time_width`` None: without time."""

    def __init__(
        self, width_in: int, width: int, *, groups: int, eps: float, time_width: int | None
    ) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups, width_in, eps=eps)
        self.conv_1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time = None if time_width is None else nn.Linear(time_width, width)
        self.norm_2 = nn.GroupNorm(groups, width, eps=eps)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = None if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """``x`` (N, C_in, H, W), ``time`` (N, E) → (N, C, H, W)."""
        inner = self.conv_1(F.silu(self.norm_1(x)))
        if self.time is not None and time is not None:
            inner = inner + self.time(F.silu(time))[:, :, None, None]
        inner = self.conv_2(F.silu(self.norm_2(inner)))
        return torch.as_tensor((x if self.shortcut is None else self.shortcut(x)) + inner)


class Layer(nn.Module):
    """A residual block, then attention over space, then attention over time; both optional."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        width_in: int,
        width: int,
        heads: int | None,
        temporal: bool,
        place: str,
    ) -> None:
        super().__init__()
        self.resnet = ResnetBlock(
            width_in, width, groups=config.groups, eps=config.eps, time_width=config.time_width
        )
        self.spatial = self.temporal = None
        if heads is not None:
            self.spatial = SpatialTransformer(
                width,
                heads,
                groups=config.groups,
                place=place,
                audio_width=config.audio_width,
                audio_gain=config.audio_gain,
            )
        if temporal and config.motion is not None:
            self.temporal = TemporalTransformer(width, config.motion, place)

    def forward(self, x: Tensor, time: Tensor, context: AttentionContext) -> Tensor:
        x = self.resnet(x, time)
        if self.spatial is not None:
            x = self.spatial(x, context)
        if self.temporal is not None:
            x = self.temporal(x, context)
        return x


class Level(nn.Module):
    """The layers at one resolution, and the convolution to the next, if any."""

    def __init__(self, layers: list[Layer], resize: nn.Conv2d | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.resize = resize


class Backbone(nn.Module):
    """Down, middle, up: the UNet (arXiv 1505.04597) between a first and a last convolution."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.time = nn.Sequential(
            nn.Linear(first, config.time_width),
            nn.SiLU(),
            nn.Linear(config.time_width, config.time_width),
        )
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down = nn.ModuleList(_down_levels(config))
        self.mid = nn.ModuleList(_mid_layers(config))
        self.up = nn.ModuleList(_up_levels(config))

    def embed_time(self, index: Tensor) -> Tensor:
        """Diffusion steps ``index`` (N,), 0 … 999, need not be whole → (N, E)."""
        return torch.as_tensor(
            self.time(sinusoid(index, self.config.channels[0]).to(self.conv_in.weight.dtype))
        )

    def run(self, x: Tensor, time: Tensor, context: AttentionContext) -> Tensor:
        """``x`` (N, C_0, H, W) after the first convolution → the same shape before the last."""
        skips = [x]
        for level in cast(Iterable[Level], self.down):
            for layer in level.layers:
                x = layer(x, time, context)
                skips.append(x)
            if level.resize is not None:
                x = level.resize(x)
                skips.append(x)
        for layer in self.mid:
            x = layer(x, time, context)
        for level in cast(Iterable[Level], self.up):
            for layer in level.layers:
                x = layer(torch.cat([x, skips.pop()], dim=1), time, context)
            if level.resize is not None:
                # To the skip connection's size: an odd side was rounded on the way down.
                x = F.interpolate(x, size=skips[-1].shape[-2:], mode="nearest")
                x = level.resize(x)
        return x


def _down_levels(config: UNetConfig) -> list[Level]:
    levels = []
    width = config.channels[0]
    for i, wide in enumerate(config.channels):
        heads = config.heads[i] if config.attention[i] else None
        temporal = config.motion is not None and config.motion.down[i]
        layers = []
        for j in range(config.layers):
            layers.append(
                Layer(
                    config,
                    width_in=width,
                    width=wide,
                    heads=heads,
                    temporal=temporal,
                    place=f"down.{i}.{j}",
                )
            )
            width = wide
        last = i == len(config.channels) - 1
        levels.append(
            Level(layers, None if last else nn.Conv2d(wide, wide, 3, stride=2, padding=1))
        )
    return levels


def _mid_layers(config: UNetConfig) -> list[Layer]:
    wide, heads = config.channels[-1], config.heads[-1]
    temporal = config.motion is not None and config.motion.mid
    return [
        Layer(config, width_in=wide, width=wide, heads=heads, temporal=temporal, place="mid"),
        Layer(config, width_in=wide, width=wide, heads=None, temporal=False, place=""),
    ]


def _up_levels(config: UNetConfig) -> list[Level]:
    skips = [config.channels[0]]  # widths, as `Backbone.run` stacks them up
    for i, wide in enumerate(config.channels):
        skips += [wide] * (config.layers + (i < len(config.channels) - 1))
    levels = []
    width = config.channels[-1]
    for i, wide in enumerate(reversed(config.channels)):
        mirrored = len(config.channels) - 1 - i
        heads = config.heads[mirrored] if config.attention[mirrored] else None
        temporal = config.motion is not None and config.motion.up[i]
        layers = []
        for j in range(config.layers + 1):
            layers.append(
                Layer(
                    config,
                    width_in=width + skips.pop(),
                    width=wide,
                    heads=heads,
                    temporal=temporal,
                    place=f"up.{i}.{j}",
                )
            )
            width = wide
        levels.append(Level(layers, nn.Conv2d(wide, wide, 3, padding=1) if mirrored else None))
    return levels


def reference_places(config: UNetConfig) -> dict[str, tuple[int, int]]:
    """Place → (level, width) of every attention that takes the reference, in running order."""
    deepest = len(config.channels) - 1
    places = {
        f"down.{i}.{j}": (i, wide)
        for i, wide in enumerate(config.channels)
        for j in range(config.layers)
        if config.attention[i]
    }
    places["mid"] = (deepest, config.channels[-1])
    for i in range(deepest + 1):
        level = deepest - i
        if config.attention[level]:
            places |= {
                f"up.{i}.{j}": (level, config.channels[level]) for j in range(config.layers + 1)
            }
    return places


def sinusoid(values: Tensor, width: int) -> Tensor:
    """(N,) → (N, width) float32: cosines, then sines, wavelengths 2π … 20 000π."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=values.device) * (-math.log(10_000.0) / half))
    angles = values.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
