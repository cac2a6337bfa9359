"""Interpolate weights between two stages of a network's training.

Fine-tuned on a corpus of few voices, an encoder initialised from Whisper forgets other voices.
Between an early and a late stage lie encoders that generalise to new voices better than either,
and are nearly as good on the corpus as the late one (WiSE-FT, Wortsman et al. 2022,
arXiv 2109.01903). The same holds for a student that continues from an earlier one.
docs/experiments/motion.md has the figures.
"""

from __future__ import annotations

import torch
from torch import nn

from model.motion.network import MotionNet

# What `AudioEncoderObjective` trains.
AUDIO_ENCODER_PARAMETERS = ("audio_encoder.", "audio_to_motion.", "viseme_head.")


def init_interp(early: nn.Module, late: nn.Module, share: float) -> None:
    """Set all parameters of ``late``, in place, to ``share`` (0 to 1) of the way from ``early``."""
    before = early.state_dict()
    state = late.state_dict()
    late.load_state_dict({name: torch.lerp(before[name], x, share) for name, x in state.items()})


def interpolate_audio_encoder(
    net: MotionNet, early: MotionNet, late: MotionNet, *, share: float
) -> None:
    """Set ``net``'s audio encoder, in place, to ``share`` of the way from ``early`` to ``late``.

    Raises ``ValueError`` for a share outside 0 to 1 and for encoders of different shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--between {share}, expected 0 (the early encoder) to 1 (the late one)")
    own = net.state_dict()
    first, second = early.state_dict(), late.state_dict()
    names = [name for name in own if name.startswith(AUDIO_ENCODER_PARAMETERS)]
    for name in names:
        shapes = {state[name].shape if name in state else None for state in (own, first, second)}
        if len(shapes) > 1:
            raise ValueError(f"not stages of one encoder: {name} differs in shape")
    net.load_state_dict(
        own | {name: torch.lerp(first[name], second[name], share) for name in names}
    )
