"""A guidance scale as a learned token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScaleToken(nn.Module):
    """(B,) guidance scales -> (B, 1, W) tokens (FADA, arXiv 2412.16915, section 3.3).

    ``embed``: (B,) scales -> (B, ``features``). The last layer starts at zero, so a student starts
    as its teacher with one empty token.
    """

    def __init__(self, width: int, features: int, *, embed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._embed = embed
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scales: Tensor) -> Tensor:
        hidden = F.silu(self.hidden(self._embed(scales).to(self.hidden.weight.dtype)))
        return torch.as_tensor(self.out(hidden)[:, None])
