"""The face locator: where the face may move, as features added to the UNet's first layer."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.video.config import FaceLocatorConfig


class FaceLocator(nn.Module):
    """ControlNet's condition encoder (arXiv 2302.05543). Starts silent: its last layer is zero."""

    def __init__(self, config: FaceLocatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        blocks = []
        for now, then in pairwise(widths):
            blocks += [nn.Conv2d(now, now, 3, padding=1)]
            blocks += [nn.Conv2d(now, then, 3, padding=1, stride=2)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, mask: Tensor) -> Tensor:
        """``mask`` (B, 1, H, W), 1 where the face may be → (B, C_0, H / 8, W / 8)."""
        x = F.silu(self.conv_in(mask.to(self.conv_in.weight.dtype)))
        for block in self.blocks:
            x = F.silu(block(x))
        return torch.as_tensor(self.conv_out(x))
