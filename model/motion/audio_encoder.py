"""Audio encoders of the motion networks: a window's log-mel rows to one token per frame.

Both see their whole window, because a mouth prepares for a sound and lingers after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio.log_mel import MEL_BINS, ROW_DIM, WINDOW_FRAMES
from model.audio.whisper import STATES_PER_SECOND, WhisperConfig, WhisperEncoder
from model.types import FPS

STATES_PER_FRAME = STATES_PER_SECOND // FPS


class AudioEncoder(nn.Module):
    """(B, frames, ROW_DIM) log-mel rows -> (B, frames, W): residual convolutions, each over ±2
    frames."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.rows = nn.Linear(ROW_DIM, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.rows(rows).transpose(1, 2)
        for layer in self.layers:
            x = x + F.gelu(layer(F.gelu(x)))
        return torch.as_tensor(self.norm(x.transpose(1, 2)))


class WhisperBlocks(nn.Module):
    """The same from the first blocks of Whisper tiny's encoder (arXiv 2212.04356), pre-trained on
    hundreds of thousands of hours of speech. Takes WINDOW_FRAMES rows at most.

    Its first convolution is adapted to our 64 bands (`training.whisper_init`), so both encoders
    take the same rows.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        config = WhisperConfig(
            mels=MEL_BINS, positions=STATES_PER_FRAME * WINDOW_FRAMES, layers=blocks
        )
        self.encoder = WhisperEncoder(config)
        self.states = nn.LayerNorm(STATES_PER_FRAME * config.width)
        self.tokens = nn.Linear(STATES_PER_FRAME * config.width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor) -> Tensor:
        hops = rows.reshape(rows.shape[0], -1, MEL_BINS).transpose(1, 2)
        last = self.encoder.depths(hops)[-1]
        states = self.states(last.reshape(*rows.shape[:2], -1))
        return torch.as_tensor(self.norm(self.tokens(states)))
