"""The reference UNet: one pass over a portrait's latent gives features to attend to."""

from __future__ import annotations

import torch
from torch import Tensor

from model.video.attention import AttentionContext, Notes
from model.video.blocks import Backbone
from model.video.config import UNetConfig


class ReferenceUNet(Backbone):
    """Stable Diffusion's UNet without text attention, at diffusion step 0 (arXiv 2311.17117)."""

    def __init__(self, config: UNetConfig) -> None:
        if config.audio_width is not None or config.motion is not None:
            raise ValueError("a reference UNet has neither audio attention nor motion modules")
        super().__init__(config)

    def forward(self, latents: Tensor) -> tuple[Tensor, Notes]:
        """``latents`` (B, 4, H, W) → the last features (B, C_0, H, W), and the bank.

        The bank holds, for each of `reference_places`, (B, L, C) with L pixels at that level.
        """
        bank: Notes = {}
        x = self.conv_in(latents.to(self.conv_in.weight.dtype))
        time = self.embed_time(torch.zeros(x.shape[0], device=x.device))
        return self.run(x, time, AttentionContext(bank=bank)), bank
