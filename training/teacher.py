"""Train the motion teacher: a diffusion model whose conditions are dropped at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from model.diffusion.denoiser import Denoiser, X0Denoiser
from model.diffusion.schedule import CosineSchedule, add_noise
from model.motion.audio_encoder import WhisperBlocks
from model.motion.checkpoint import MotionWeights, load_weights, save_weights
from model.motion.network import MotionNet, NetConfig
from model.types import Floats
from model.weights_file import weights_metadata
from training.data.batches import EncodedWindows, MotionBatch, WindowSampler
from training.data.corpus import Corpus, fit_lip_gap, motion_statistics
from training.losses import MotionLoss, dimension_weights
from training.trainer import Losses, RunOptions, Trainer
from training.whisper_init import init_from_whisper

STEPS = 25  # sampler steps
BATCH = 64
# Shares of windows per guidance branch; the remaining 79 % keep both conditions.
NO_CONDITIONS = 0.08
REFERENCE_ONLY = 0.10
AUDIO_ONLY = 0.03
AUDIO_ENCODER_BATCH = 128
AUDIO_ENCODER_SHARE = 0.4  # of the training time
WHISPER_RATE_SCALE = 0.15  # of the learning rate while Whisper's blocks are trained
TOKEN_PARAMETERS = "audio_encoder.tokens."  # in the names of layers that Whisper lacks
# Of the audio encoder's windows; low, as only one of its voices is tracked.
AUDIO_ENCODER_TRACKED_SHARE = 0.25
AUDIO_MOTION_WEIGHT = 0.3  # of the predictions from sound alone, see `MotionNet.audio_heads`
VISEME_WEIGHT = 0.5


def draw_timesteps(size: int, random: torch.Generator) -> Tensor:
    """(B,) times in (0, 1] with density 2t.

    Conditions are learned where noise hides the frames; near t = 0 the frames suffice.
    """
    return torch.rand(size, generator=random).sqrt().clamp(min=1e-3)


def drop_conditions(size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """``has_audio`` and ``has_reference``, (B,) of 0 or 1, by the shares of the branches."""
    draw = torch.rand(size, generator=random)
    only_reference = (draw >= NO_CONDITIONS) & (draw < NO_CONDITIONS + REFERENCE_ONLY)
    only_audio = draw > 1 - AUDIO_ONLY
    audio = ~((draw < NO_CONDITIONS) | only_reference)
    reference = ~((draw < NO_CONDITIONS) | only_audio)
    return audio.float(), reference.float()


class AudioEncoderObjective:
    """Pretrains the audio encoder: predict motion and visemes from sound alone.

    It costs a fraction of a denoising step. The denoising loss alone teaches an encoder slowly, as
    the prefix and lightly noised frames explain most of a window. Visemes are known for all voices.
    """

    def __init__(
        self,
        net: MotionNet,
        windows: WindowSampler,
        loss: MotionLoss,
        *,
        before: MotionNet | None = None,
    ) -> None:
        """``before``: a network whose audio tokens a new encoder must match on tracked windows,
        where they are good, so that the denoiser trained with them still works."""
        self._net, self._windows, self._loss, self._before = net, windows, loss, before

    def losses(self) -> Losses:
        """Scalars: errors of ``motion`` and ``visemes``, with ``before`` also of ``tokens``."""
        batch = self._windows.draw(AUDIO_ENCODER_BATCH)
        cond = batch.conditions()
        tokens = self._net.audio_tokens(cond)
        motion, visemes = audio_encoder_losses(self._net, self._loss, batch, tokens=tokens)
        losses = {"loss": motion + VISEME_WEIGHT * visemes, "motion": motion, "visemes": visemes}
        if self._before is not None:
            with torch.no_grad():
                known = self._before.audio_tokens(cond)
            error = ((tokens - known) ** 2).mean((1, 2)) / known.var()
            losses["tokens"] = (error * (batch.confidence == 1)).mean()
            losses["loss"] = losses["loss"] + losses["tokens"]
        return losses


def audio_encoder_losses(
    net: MotionNet, loss: MotionLoss, batch: MotionBatch, *, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Scalars: error of the motion predicted from ``tokens``, weighted by confidence, and
    cross-entropy of the visemes where they are known."""
    motion, logits = net.audio_heads(tokens)
    target = torch.cat([batch.clean_prefix, batch.x0], dim=1)
    error = (loss(motion, target) * batch.confidence).mean()
    visemes = -(batch.visemes * logits.log_softmax(2)).sum(2).mean()
    return error, visemes


class TeacherObjective:
    """Denoises random windows with conditions dropped at random."""

    def __init__(
        self,
        net: MotionNet,
        windows: WindowSampler | EncodedWindows,
        *,
        loss: MotionLoss,
        random: torch.Generator,
        denoiser: Denoiser | None = None,
    ) -> None:
        """``denoiser``: turns the prediction of ``net`` into x0; None if it is x0."""
        self._net, self._windows, self._loss, self._random = net, windows, loss, random
        self._denoiser = denoiser or X0Denoiser(net)
        self._schedule = CosineSchedule()

    def losses(self) -> Losses:
        """Scalars: ``denoising``, and ``motion`` and ``visemes`` of the audio encoder."""
        batch: MotionBatch = self._windows.draw(BATCH)
        cond = batch.conditions()
        cond["has_audio"], cond["has_reference"] = drop_conditions(BATCH, self._random)
        t = draw_timesteps(BATCH, self._random)
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t=t)
        denoising = (self._loss(self._denoiser(x_t, t, cond), batch.x0) * batch.confidence).mean()
        tokens = self._net.audio_tokens(cond)
        motion, visemes = audio_encoder_losses(self._net, self._loss, batch, tokens=tokens)
        loss = denoising + AUDIO_MOTION_WEIGHT * (motion + VISEME_WEIGHT * visemes)
        return {"loss": loss, "denoising": denoising, "motion": motion, "visemes": visemes}


@dataclass(frozen=True)
class TeacherInit:
    """What a teacher's training starts from."""

    net: MotionNet
    mean: Tensor  # (58,) of the latents; not trained
    std: Tensor  # (58,)
    before: MotionNet | None = None  # see `AudioEncoderObjective`


def new_teacher(corpus: Corpus, config: NetConfig) -> TeacherInit:
    """A network with random weights, in units of ``corpus``."""
    net = MotionNet(config)
    mean, std = motion_statistics(corpus)
    return TeacherInit(net, mean, std)


def load_teacher(path: Path) -> TeacherInit:
    """The teacher in ``path``; raises ``ValueError`` if it is none."""
    known = load_weights(path)
    if known.net.config.guided or not known.net.config.visemes:
        raise ValueError(f"--start {path} is no teacher: {known.net.config}")
    return TeacherInit(known.net.train().requires_grad_(True), known.mean, known.std)


def with_whisper_encoder(
    init: TeacherInit, file: Path, blocks: int, *, speech: Sequence[Floats]
) -> TeacherInit:
    """Replace the audio encoder by the first ``blocks`` of Whisper in ``file``.

    ``speech``: see `init_from_whisper`, which also raises ``ValueError``.
    """
    before = init.net
    net = MotionNet(replace(before.config, whisper_blocks=blocks))
    init_from_whisper(cast(WhisperBlocks, net.audio_encoder), file, speech)
    own = {k: v for k, v in net.state_dict().items() if k.startswith("audio_encoder.")}
    rest = {k: v for k, v in before.state_dict().items() if not k.startswith("audio_encoder.")}
    net.load_state_dict(own | rest)
    return replace(init, net=net, before=before.requires_grad_(False))


def train_teacher(corpus: Corpus, options: RunOptions, init: TeacherInit, *, seed: int) -> Path:
    """Pretrain the audio encoder, then train the denoiser.

    Returns ``options.folder``/teacher.safetensors.
    """
    encoder = replace(options, folder=options.folder / "audio-encoder")
    train_audio_encoder(corpus, _share_of_time(encoder, AUDIO_ENCODER_SHARE), init, seed=seed)
    return train_denoising(
        corpus, _share_of_time(options, 1 - AUDIO_ENCODER_SHARE), init, seed=seed
    )


def train_audio_encoder(
    corpus: Corpus, options: RunOptions, init: TeacherInit, *, seed: int
) -> Path:
    """Train the audio encoder of ``init`` in place, Whisper's blocks at a lower rate.

    Returns ``options.folder``/audio-encoder.safetensors, a teacher with an untrained denoiser.
    """
    random = torch.Generator().manual_seed(seed)
    net = init.net
    if net.config.whisper_blocks:
        options = replace(options, peak_rate=WHISPER_RATE_SCALE * options.peak_rate)
    trainer: Trainer[MotionNet] = Trainer(net, options, random, fast=TOKEN_PARAMETERS)
    windows = WindowSampler(
        corpus, init.mean, init.std, random=random, tracked_share=AUDIO_ENCODER_TRACKED_SHARE
    )
    objective = AudioEncoderObjective(net, windows, _loss(corpus, init), before=init.before)
    path = options.folder / "audio-encoder.safetensors"
    trainer.run(objective.losses, lambda: _save(trainer, init, path))
    net.load_state_dict(trainer.averaged.state_dict())
    return path


def train_denoising(corpus: Corpus, options: RunOptions, init: TeacherInit, *, seed: int) -> Path:
    """Train ``init`` to denoise; an audio encoder of Whisper's blocks stays frozen.

    Returns ``options.folder``/teacher.safetensors.
    """
    random = torch.Generator().manual_seed(seed)
    net = init.net
    frozen = bool(net.config.whisper_blocks)
    net.audio_encoder.requires_grad_(not frozen)
    trainer: Trainer[MotionNet] = Trainer(net, options, random)
    sampler = WindowSampler(corpus, init.mean, init.std, random=random)
    windows = EncodedWindows(sampler, net.audio_encoder) if frozen else sampler
    objective = TeacherObjective(net, windows, loss=_loss(corpus, init), random=random)
    path = options.folder / "teacher.safetensors"
    trainer.run(objective.losses, lambda: _save(trainer, init, path))
    return path


def _loss(corpus: Corpus, init: TeacherInit) -> MotionLoss:
    return MotionLoss(init.mean, init.std, fit_lip_gap(corpus), dimension_weights())


def _save(trainer: Trainer[MotionNet], init: TeacherInit, path: Path) -> None:
    metadata = weights_metadata("teacher", STEPS, trainer.step)
    save_weights(path, MotionWeights(trainer.averaged, init.mean, init.std, metadata))


def _share_of_time(options: RunOptions, share: float) -> RunOptions:
    return replace(options, minutes=share * options.minutes)
