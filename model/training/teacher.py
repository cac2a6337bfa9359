"""The teacher's training: a diffusion model of the motion, each condition left out at times.

Knows: which conditions are dropped how often, how time is drawn. Does not know: students.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.diffusion.schedule import CosineSchedule, add_noise
from model.motion.net import MotionNet, NetConfig
from model.motion.weights import MotionWeights, load_weights, save_weights
from model.training.batches import Batch, WindowSampler
from model.training.corpus import Corpus, fit_lip_gap, motion_statistics
from model.training.losses import MotionLoss, dimension_weights
from model.training.trainer import Losses, RunOptions, Trainer

BATCH = 64
# shares of windows per guidance branch; the remaining 79 % have everything
NO_CONDITIONS = 0.08
REFERENCE_ONLY = 0.10
AUDIO_ONLY = 0.03
HEARING_BATCH = 128
HEARING_SHARE = 0.15  # of the training time
HEARD_WEIGHT = 0.3  # of the estimate from sound alone, see `MotionNet.heard_motion`


def draw_times(size: int, random: torch.Generator) -> Tensor:
    """(B,) times in (0, 1], more of them late: p(t) = 2t.

    Near t = 0 the noised frames themselves say what is clean; the conditions are learned where
    noise hides the frames.
    """
    return torch.rand(size, generator=random).sqrt().clamp(min=1e-3)


def dropped(size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B,) flags of 0 or 1: has_audio, has_reference."""
    draw = torch.rand(size, generator=random)
    only_reference = (draw >= NO_CONDITIONS) & (draw < NO_CONDITIONS + REFERENCE_ONLY)
    only_audio = draw > 1 - AUDIO_ONLY
    audio = ~((draw < NO_CONDITIONS) | only_reference)
    reference = ~((draw < NO_CONDITIONS) | only_audio)
    return audio.float(), reference.float()


class HearingObjective:
    """The audio encoder alone, by `MotionNet.heard_motion`: an eighth of a denoising step's work.

    A diffusion loss teaches an encoder slowly, for the prefix and little noise explain most of
    it. So the encoder learns to hear first.
    """

    def __init__(self, net: MotionNet, windows: WindowSampler, loss: MotionLoss) -> None:
        self._net, self._windows, self._loss = net, windows, loss

    def losses(self) -> Losses:
        batch = self._windows.draw(HEARING_BATCH)
        every = torch.cat([batch.clean_prefix, batch.x0], dim=1)
        heard = self._loss(self._net.heard_motion(batch.conditions()), every)
        return {"loss": (heard * batch.trust).mean()}


class TeacherObjective:
    """Denoising of random windows: `losses` is what the trainer minimises."""

    def __init__(
        self, net: MotionNet, windows: WindowSampler, loss: MotionLoss, random: torch.Generator
    ) -> None:
        self._net, self._windows, self._loss, self._random = net, windows, loss, random
        self._schedule = CosineSchedule()

    def losses(self) -> Losses:
        batch: Batch = self._windows.draw(BATCH)
        cond = batch.conditions()
        cond["has_audio"], cond["has_reference"] = dropped(BATCH, self._random)
        t = draw_times(BATCH, self._random)
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t)
        denoising = (self._loss(self._net(x_t, t, cond), batch.x0) * batch.trust).mean()
        every = torch.cat([batch.clean_prefix, batch.x0], dim=1)
        heard = (self._loss(self._net.heard_motion(cond), every) * batch.trust).mean()
        loss = denoising + HEARD_WEIGHT * heard
        return {"loss": loss, "denoising": denoising, "heard": heard}


def train_teacher(corpus: Corpus, options: RunOptions, seed: int, start: Path | None) -> Path:
    """Trains on ``corpus`` and returns the weights' path, ``options.folder``/teacher.safetensors.

    ``start``: weights to begin with; their normalisation is kept.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = MotionNet(NetConfig())
    mean, std = motion_statistics(corpus)
    if start is not None:
        begun = load_weights(start)
        net, mean, std = begun.net.train().requires_grad_(True), begun.mean, begun.std
    loss = MotionLoss(mean, std, fit_lip_gap(corpus), dimension_weights())
    windows = WindowSampler(corpus, mean, std, random)
    hearing = replace(
        options, folder=options.folder / "hearing", minutes=HEARING_SHARE * options.minutes
    )
    listener: Trainer[MotionNet] = Trainer(net, hearing, random)
    listener.run(HearingObjective(net, windows, loss).losses, lambda: None)
    net.load_state_dict(listener.averaged.state_dict())
    trainer: Trainer[MotionNet] = Trainer(net, options, random)
    objective = TeacherObjective(net, windows, loss, random)
    path = options.folder / "teacher.safetensors"

    def keep() -> None:
        facts: dict[str, object] = {"role": "teacher", "trained_steps": trainer.step}
        save_weights(path, MotionWeights(trainer.averaged, mean, std, facts))

    trainer.run(objective.losses, keep)
    return path
