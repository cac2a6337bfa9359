"""The networks that engines are built from, by name, and inputs of the shapes they are served with.

A video network without a file of weights gets random ones: enough to build and time it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.audio.frontend import AudioWindowSpec
from model.audio.log_mel import HOP, LOOKAHEAD, PREFIX, ROW_DIM
from model.models import WEIGHTS
from model.motion.checkpoint import load_weights
from model.portrait.blendshapes import MOTION_DIM, REFERENCE_DIM
from model.video.blocks import reference_places
from model.video.config import MotionConfig, UNetConfig, VAEConfig
from model.video.reference_unet import ReferenceUNet
from model.video.tiny import TinyNet
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE
from model.video.weights import load_net

Inputs = Callable[[int], dict[str, Tensor]]  # B → all inputs by name, (B, ...) each


@dataclass(frozen=True)
class Sizes:
    """A window of the video networks: latent pixels a side, frames, tokens of sound a frame."""

    side: int = 64
    frames: int = 12
    prefix: int = 4
    tokens: int = 50


@dataclass(frozen=True)
class ExampleModel:
    """``inputs`` are random but always the same, and on the CPU."""

    name: str
    net: nn.Module
    inputs: Inputs


VIDEO = ("video-student", "video-teacher", "video-reference", "video-decoder")
_TINY_SIZES = Sizes(side=8, frames=4, prefix=2, tokens=5)
_TINY_UNET = UNetConfig(
    channels=(32, 64),
    layers=1,
    attention=(True, False),
    heads=(2, 2),
    groups=8,
    audio_width=16,
    motion=MotionConfig(down=(True, True), up=(True, True), heads=2, groups=8),
)
_TINY_VAE = VAEConfig(channels=(16, 32), layers=1, groups=8)


def names() -> tuple[str, ...]:
    """The motion students that ship, and the video networks."""
    return (*sorted(path.stem for path in WEIGHTS.glob("motion-*.safetensors")), *VIDEO)


def example_model(
    name: str, weights: Path | None = None, *, tiny: bool = False, device: str = "cpu"
) -> ExampleModel:
    """The network called ``name``, in evaluation mode.

    ``weights``: a file to use instead of the shipped weights; ``tiny``: a small video network of
    the same architecture; ``device``: where random weights are drawn. Raises ``ValueError`` for an
    unknown name, or a file of another network.
    """
    if name in names() and name not in VIDEO:
        motion = load_weights(weights or WEIGHTS / f"{name}.safetensors").net
        return ExampleModel(name, motion, lambda rows: motion_inputs(rows, motion.config.guided))
    if name not in VIDEO:
        raise ValueError(f"model = {name!r}, expected one of {', '.join(names())}")
    sizes = _TINY_SIZES if tiny else Sizes()
    if weights is None:
        with torch.device(device):
            net = _random(name, tiny)
    else:
        net, _ = load_net(weights)
    return ExampleModel(f"{name}-tiny" if tiny else name, net, _video_inputs(name, net, sizes))


def _random(name: str, tiny: bool) -> nn.Module:
    unet = _TINY_UNET if tiny else UNetConfig()
    prefix = (_TINY_SIZES if tiny else Sizes()).prefix
    torch.manual_seed(0)
    net: nn.Module
    if name == "video-student":
        net = DenoisingUNet(replace(unet, guided=True, prefix_frames=prefix))
    elif name == "video-teacher":
        net = DenoisingUNet(unet)
    elif name == "video-reference":
        net = ReferenceUNet(replace(unet, audio_width=None, motion=None))
    else:
        net = VAE(_TINY_VAE if tiny else VAEConfig())
    for parameter in net.parameters():
        if not parameter.any():  # zero-initialised, which would hide the layers before it
            nn.init.normal_(parameter, std=0.02)
    return net.eval().requires_grad_(False)


def _video_inputs(name: str, net: nn.Module, sizes: Sizes) -> Inputs:
    if isinstance(net, DenoisingUNet) and name in ("video-student", "video-teacher"):
        config = net.config
        return lambda rows: denoiser_inputs(rows, config, sizes)
    if isinstance(net, ReferenceUNet) and name == "video-reference":
        channels = net.config.in_channels
        return lambda rows: {"latents": _Noise(rows)(channels, sizes.side, sizes.side)}
    if isinstance(net, VAE) and name == "video-decoder":
        latent = net.config.latent_channels
        return lambda rows: {"latents": _Noise(rows)(latent, sizes.side, sizes.side)}
    raise ValueError(f"the weights hold a {type(net).__name__}, expected a {name}")


def video_inputs(net: nn.Module, window_spec: AudioWindowSpec, latent: tuple[int, ...]) -> Inputs:
    """Inputs of a video student. ``latent``: the shape of a frame's.

    Raises ``ValueError`` for the network of no video student.
    """
    if isinstance(net, TinyNet):
        tiny = net
        return lambda rows: _tiny_inputs(rows, tiny, window_spec, latent=latent)
    if isinstance(net, DenoisingUNet):
        config, tokens = net.config, window_spec.frontend.row_shape[0]
        sizes = Sizes(latent[-1], window_spec.hop, config.prefix_frames, tokens)
        return lambda rows: denoiser_inputs(rows, config, sizes)
    raise ValueError(f"net is a {type(net).__name__}, expected the network of a video student")


class _Noise:
    """Standard normal noise of ``rows`` rows; a row is the same in every batch."""

    def __init__(self, rows: int) -> None:
        self._random = [torch.Generator().manual_seed(row) for row in range(rows)]

    def __call__(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=one) for one in self._random])


def motion_inputs(rows: int, guided: bool) -> dict[str, Tensor]:
    """Inputs of a motion network; ``guided``: it takes guidance scales."""
    normal = _Noise(rows)
    inputs = {
        "x_t": normal(HOP, MOTION_DIM),
        "t": _times(rows),
        "prefix": normal(PREFIX, MOTION_DIM),
        "audio": normal(PREFIX + HOP + LOOKAHEAD, ROW_DIM),
        "reference": normal(REFERENCE_DIM),
    }
    return inputs | _flags(rows) | (_guidance(rows) if guided else {})


def denoiser_inputs(rows: int, config: UNetConfig, sizes: Sizes) -> dict[str, Tensor]:
    """Inputs of a `DenoisingUNet`."""
    normal, side = _Noise(rows), sizes.side
    prefix = config.prefix_frames
    inputs = {
        "x_t": normal(sizes.frames, config.in_channels, side, side),
        "t": _times(rows),
        "audio": normal(prefix + sizes.frames, sizes.tokens, config.audio_width or 1),
        "face": normal(config.channels[0], side, side),
    }
    if prefix:
        inputs["prefix"] = normal(prefix, config.in_channels, side, side)
    for place, (level, width) in reference_places(config).items():
        inputs[f"reference.{place}"] = normal((side >> level) ** 2, width)
    return inputs | (_guidance(rows) if config.guided else _flags(rows))


def _tiny_inputs(
    rows: int, net: TinyNet, window_spec: AudioWindowSpec, *, latent: tuple[int, ...]
) -> dict[str, Tensor]:
    normal = _Noise(rows)
    inputs = {
        "x_t": normal(window_spec.hop, *latent),
        "t": _times(rows),
        "prefix": normal(net.config.unet.prefix_frames, *latent),
        "audio": normal(window_spec.frames, *window_spec.frontend.row_shape),
        "reference": normal(*latent),
    }
    return inputs | (_guidance(rows) if net.config.guided else _flags(rows))


def _times(rows: int) -> Tensor:
    return torch.linspace(0.2, 0.8, rows)


def _flags(rows: int) -> dict[str, Tensor]:
    return {"has_audio": torch.ones(rows), "has_reference": torch.ones(rows)}


def _guidance(rows: int) -> dict[str, Tensor]:
    return {"guidance": torch.tensor([[2.0, 1.0]]).repeat(rows, 1)}
