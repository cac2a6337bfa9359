"""Inputs of a video student's network, of the shapes in which it is served."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.example_inputs import Inputs, Sizes, denoiser_inputs
from model.audio.frontend import AudioWindowSpec
from model.video.tiny import TinyNet
from model.video.unet3d import DenoisingUNet


def video_inputs(net: nn.Module, window_spec: AudioWindowSpec, latent: tuple[int, ...]) -> Inputs:
    """Random ones, always the same. ``latent``: the shape of a frame's.

    Raises ``ValueError`` for a network that is no video student's.
    """
    if isinstance(net, TinyNet):
        tiny = net
        return lambda rows: _tiny_inputs(rows, tiny, window_spec, latent)
    if isinstance(net, DenoisingUNet):
        config, tokens = net.config, window_spec.frontend.row_shape[0]
        sizes = Sizes(latent[-1], window_spec.hop, config.prefix_frames, tokens)
        return lambda rows: denoiser_inputs(rows, config, sizes)
    raise ValueError(f"a {type(net).__name__} is no video student's network")


def _tiny_inputs(
    rows: int, net: TinyNet, window_spec: AudioWindowSpec, latent: tuple[int, ...]
) -> dict[str, Tensor]:
    """See `TinyNet.forward`."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=random)

    inputs = {
        "x_t": normal(window_spec.hop, *latent),
        "t": torch.linspace(0.2, 0.8, rows),
        "prefix": normal(net.config.unet.prefix_frames, *latent),
        "audio": normal(window_spec.frames, *window_spec.frontend.row_shape),
        "reference": normal(*latent),
    }
    if net.config.guided:
        return inputs | {"guidance": torch.tensor([[2.0, 1.0]]).repeat(rows, 1)}
    return inputs | {"has_audio": torch.ones(rows), "has_reference": torch.ones(rows)}
