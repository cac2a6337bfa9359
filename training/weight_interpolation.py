"""A network between two stages of its training.

An encoder that began as one which heard many voices (`whisper_start`) forgets them while it learns
the few of a corpus. On the straight line between an early and a late stage of it lie encoders that
hear new voices better than either and the corpus's own nearly as well as the late one (WiSE-FT,
Wortsman et al. 2022, arXiv 2109.01903). Of a student that goes on from an earlier one the same is
true. docs/experiments/motion.md has the figures.
"""

from __future__ import annotations

import torch
from torch import nn

from model.motion.network import MotionNet

EARS = ("audio.", "heard.", "spoken.")  # what `teacher.HearingObjective` teaches


def init_interp(early: nn.Module, late: nn.Module, share: float) -> None:
    """Takes ``late`` back, in place, to ``share`` (0 to 1) of the way from ``early``, all its
    parameters."""
    before = early.state_dict()
    state = late.state_dict()
    late.load_state_dict({name: torch.lerp(before[name], x, share) for name, x in state.items()})


def interpolate_audio_encoder(
    net: MotionNet, early: MotionNet, late: MotionNet, share: float
) -> None:
    """Gives ``net``, in place, ears ``share`` of the way from ``early``'s to ``late``'s.

    Raises ``ValueError`` for a share outside 0 to 1, or encoders of other shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--between {share}, expected 0 (the early ears) to 1 (the late ones)")
    own = net.state_dict()
    first, second = early.state_dict(), late.state_dict()
    interpolate = [name for name in own if name.startswith(EARS)]
    for name in interpolate:
        shapes = {state[name].shape if name in state else None for state in (own, first, second)}
        if len(shapes) > 1:
            raise ValueError(f"these are no stages of one encoder: {name} differs in shape")
    net.load_state_dict(
        own | {name: torch.lerp(first[name], second[name], share) for name in interpolate}
    )
