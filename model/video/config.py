"""Sizes of the video networks, and nothing else.

The defaults are Stable Diffusion 1.5's (arXiv 2112.10752) with EchoMimic's audio attention
(arXiv 2407.08136) and AnimateDiff's motion modules (arXiv 2307.04725).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from model.audio.log_mel import PREFIX

Config = TypeVar("Config")
TINY_GRID = 16  # latents of video-tiny, each way


@dataclass(frozen=True)
class MotionConfig:
    """The motion modules: which levels have one, and what each is made of.

    ``down`` and ``up`` are per level, in the order in which the network runs them.
    """

    down: tuple[bool, ...] = (True, True, True, True)
    mid: bool = True
    up: tuple[bool, ...] = (True, True, True, True)
    heads: int = 8
    blocks: int = 1
    attentions: int = 2  # in each block
    width_divisor: int = 1
    groups: int = 32
    positions: int | None = 32  # the longest clip; None: no positional encoding


@dataclass(frozen=True)
class UNetConfig:
    """A UNet over latents, one level an entry of ``channels``, from fine to coarse.

    ``audio_width`` None: no audio attention (the reference UNet). ``motion`` None: every frame by
    itself. ``prefix_frames``: clean frames before the window that it is conditioned on.
    ``guided``: a student, which takes the guidance scales as tokens, or with ``embedded_scales``,
    to compare, in the time's embedding.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2  # a level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    groups: int = 32
    eps: float = 1e-5
    audio_width: int | None = 384
    audio_gain: float = 3.0
    motion: MotionConfig | None = field(default_factory=MotionConfig)
    prefix_frames: int = 0
    guided: bool = False
    embedded_scales: bool = False

    def __post_init__(self) -> None:
        levels = len(self.channels)
        per_level = {"attention": self.attention, "heads": self.heads}
        if self.motion is not None:
            per_level |= {"motion.down": self.motion.down, "motion.up": self.motion.up}
        for name, values in per_level.items():
            if len(values) != levels:
                raise ValueError(
                    f"{name} has {len(values)} entries, expected {levels}, one a level"
                )
        if self.prefix_frames < 0 or (self.prefix_frames and self.motion is None):
            raise ValueError(
                f"prefix_frames = {self.prefix_frames}, expected 0, or more with motion modules, "
                "which alone look at them"
            )
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise ValueError(
                    f"channels = {width}, expected a multiple of heads = {heads} "
                    f"and groups = {self.groups}"
                )
            if self.motion is not None:
                inner = width // self.motion.width_divisor
                if inner % self.motion.heads or width % self.motion.groups:
                    raise ValueError(
                        f"channels = {width}, expected a multiple of motion.groups = "
                        f"{self.motion.groups}, and within motion modules {inner}, of "
                        f"motion.heads = {self.motion.heads}"
                    )

    @property
    def time_width(self) -> int:
        return 4 * self.channels[0]


@dataclass(frozen=True)
class FaceLocatorConfig:
    """A mask in, features of the UNet's first width out, an eighth of the size each way."""

    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 96, 256)
    out_channels: int = 320


@dataclass(frozen=True)
class VAEConfig:
    """Stable Diffusion's autoencoder; ``scale`` makes its latents about unit variance."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32
    scale: float = 0.18215

    @property
    def stride(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.channels) - 1)


def tiny_unet() -> UNetConfig:
    """video-tiny's UNet: a thousandth of the release's parameters, in the same parts.

    Attention only on the coarser of two levels: over 16 × 16 places it would cost more than all
    the rest. Both levels attend along time, since fine detail comes from the frames before.
    """
    return UNetConfig(
        in_channels=48,
        out_channels=48,
        channels=(32, 64),
        layers=1,
        attention=(False, True),
        heads=(4, 4),
        groups=8,
        audio_width=128,
        audio_gain=1.0,
        motion=MotionConfig((True, True), True, (True, True), 4, 1, 1, 1, 8, 16),
        prefix_frames=2,
    )


@dataclass(frozen=True)
class TinyConfig:
    """The whole of video-tiny: ``side`` pixels each way in patches of ``patch``."""

    side: int = 64
    patch: int = 4
    audio_layers: int = 3
    audio_tokens: int = 4  # per frame: features of frames around it
    unet: UNetConfig = field(default_factory=tiny_unet)

    def __post_init__(self) -> None:
        if self.patch < 1 or self.side < 1 or self.side % self.patch:
            raise ValueError(f"side = {self.side}, expected a multiple of patch = {self.patch}")
        channels = (self.unet.in_channels, self.unet.out_channels)
        if channels != (self.latent_shape[0],) * 2:
            raise ValueError(
                f"unet has {channels} channels in and out, expected {self.latent_shape[0]}, "
                f"three colours in patches of {self.patch} × {self.patch}"
            )
        if self.audio_tokens < 2 or not 1 <= self.unet.prefix_frames <= PREFIX:
            raise ValueError(
                f"audio_tokens = {self.audio_tokens}, expected 2 or more; "
                f"unet.prefix_frames = {self.unet.prefix_frames}, expected 1 to {PREFIX}"
            )

    @property
    def guided(self) -> bool:
        return self.unet.guided

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 3 * self.patch**2, self.side // self.patch, self.side // self.patch


def tiny_config(side: int = 64) -> TinyConfig:
    """video-tiny for squares of ``side`` pixels: 16 × 16 patches of whatever size that makes."""
    if side < TINY_GRID or side % TINY_GRID:
        raise ValueError(f"side = {side}, expected a multiple of {TINY_GRID}")
    patch = side // TINY_GRID
    unet = replace(tiny_unet(), in_channels=3 * patch**2, out_channels=3 * patch**2)
    return TinyConfig(side, patch, unet=unet)


def from_plain(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict` after a walk through JSON. Surplus names raise."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if known.get("motion") is not None:
        known["motion"] = from_plain(MotionConfig, known["motion"])
    if known.get("unet") is not None:
        known["unet"] = from_plain(UNetConfig, known["unet"])
    try:
        return cls(**known)
    except TypeError as error:
        raise ValueError(f"not a {cls.__name__}: {error}") from error
