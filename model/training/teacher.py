"""The teacher's training: a diffusion model of the motion, each condition left out at times.

Knows: which conditions are dropped how often, how time is drawn. Does not know: students.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.diffusion.denoiser import Conditions, Denoiser, X0Denoiser
from model.diffusion.schedule import CosineSchedule, add_noise
from model.motion.net import MotionNet, NetConfig
from model.motion.weights import MotionWeights, load_weights, save_weights, weights_facts
from model.training.batches import Batch, WindowSampler
from model.training.corpus import Corpus, fit_lip_gap, motion_statistics
from model.training.losses import MotionLoss, dimension_weights
from model.training.trainer import Losses, RunOptions, Trainer

STEPS = 25  # of the sampler
BATCH = 64
# shares of windows per guidance branch; the remaining 79 % have everything
NO_CONDITIONS = 0.08
REFERENCE_ONLY = 0.10
AUDIO_ONLY = 0.03
HEARING_BATCH = 128
HEARING_SHARE = 0.4  # of the training time
HEARING_TRACKED = 0.25  # of its windows: what is heard is voices, and all but one are untracked
HEARD_WEIGHT = 0.3  # of the estimates from sound alone, see `MotionNet.heard_speech`
SPOKEN_WEIGHT = 0.5


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
    """The audio encoder alone, by `MotionNet.heard_speech`: a fraction of a denoising step's work.

    A diffusion loss teaches an encoder slowly, for the prefix and little noise explain most of
    it. So the encoder learns to hear first: how the tracked mouth moves, and which phones are
    spoken, the one thing that all voices have in common.
    """

    def __init__(self, net: MotionNet, windows: WindowSampler, loss: MotionLoss) -> None:
        self._net, self._windows, self._loss = net, windows, loss

    def losses(self) -> Losses:
        batch = self._windows.draw(HEARING_BATCH)
        heard, spoken = hearing_losses(self._net, self._loss, batch, batch.conditions())
        return {"loss": heard + SPOKEN_WEIGHT * spoken, "heard": heard, "spoken": spoken}


def hearing_losses(
    net: MotionNet, loss: MotionLoss, batch: Batch, cond: Conditions
) -> tuple[Tensor, Tensor]:
    """Scalars: error of the motion as heard, and cross-entropy of what is spoken where it is
    known."""
    motion, logits = net.heard_speech(cond)
    every = torch.cat([batch.clean_prefix, batch.x0], dim=1)
    heard = (loss(motion, every) * batch.trust).mean()
    spoken = -(batch.visemes * logits.log_softmax(2)).sum(2).mean()
    return heard, spoken


class TeacherObjective:
    """Denoising of random windows: `losses` is what the trainer minimises."""

    def __init__(
        self,
        net: MotionNet,
        windows: WindowSampler,
        loss: MotionLoss,
        random: torch.Generator,
        denoiser: Denoiser | None = None,
    ) -> None:
        """``denoiser``: makes x0 of what ``net`` predicts; None where that is x0."""
        self._net, self._windows, self._loss, self._random = net, windows, loss, random
        self._denoiser = denoiser or X0Denoiser(net)
        self._schedule = CosineSchedule()

    def losses(self) -> Losses:
        batch: Batch = self._windows.draw(BATCH)
        cond = batch.conditions()
        cond["has_audio"], cond["has_reference"] = dropped(BATCH, self._random)
        t = draw_times(BATCH, self._random)
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t)
        denoising = (self._loss(self._denoiser(x_t, t, cond), batch.x0) * batch.trust).mean()
        heard, spoken = hearing_losses(self._net, self._loss, batch, cond)
        loss = denoising + HEARD_WEIGHT * (heard + SPOKEN_WEIGHT * spoken)
        return {"loss": loss, "denoising": denoising, "heard": heard, "spoken": spoken}


def train_teacher(
    corpus: Corpus,
    options: RunOptions,
    seed: int,
    start: Path | None,
    config: NetConfig,
    hearing_only: bool = False,
) -> Path:
    """Trains on ``corpus`` and returns the weights' path, ``options.folder``/teacher.safetensors.

    ``start``: weights to begin with; their normalisation is kept. ``hearing_only``: stops after
    the audio encoder, and returns ``hearing/hearing.safetensors``: to compare encoders.
    Raises ``ValueError`` for a ``start`` that is no such teacher.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = MotionNet(config)
    mean, std = motion_statistics(corpus)
    if start is not None:
        begun = load_weights(start)
        if begun.net.config != config:
            raise ValueError(f"--start {start} has {begun.net.config}, expected {config}")
        net.load_state_dict(begun.net.state_dict())
        mean, std = begun.mean, begun.std
    loss = MotionLoss(mean, std, fit_lip_gap(corpus), dimension_weights())

    def keep(trainer: Trainer[MotionNet], path: Path) -> None:
        facts = weights_facts("teacher", STEPS, trainer.step)
        save_weights(path, MotionWeights(trainer.averaged, mean, std, facts))

    heard = options.folder / "hearing"
    listener: Trainer[MotionNet] = Trainer(net, _part(options, heard, HEARING_SHARE), random)
    voices = WindowSampler(corpus, mean, std, random, HEARING_TRACKED)
    hearing = HearingObjective(net, voices, loss)
    listener.run(hearing.losses, lambda: keep(listener, heard / "hearing.safetensors"))
    if hearing_only:
        return heard / "hearing.safetensors"
    net.load_state_dict(listener.averaged.state_dict())
    path = options.folder / "teacher.safetensors"
    rest = _part(options, options.folder, 1 - HEARING_SHARE)
    trainer: Trainer[MotionNet] = Trainer(net, rest, random)
    windows = WindowSampler(corpus, mean, std, random)
    objective = TeacherObjective(net, windows, loss, random)
    trainer.run(objective.losses, lambda: keep(trainer, path))
    return path


def _part(options: RunOptions, folder: Path, share: float) -> RunOptions:
    return replace(options, folder=folder, minutes=share * options.minutes)
