"""The teacher's training: a diffusion model of the motion, each condition left out at times."""

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
from model.motion.checkpoint import MotionWeights, load_weights, save_weights, weights_facts
from model.motion.network import MotionNet, NetConfig
from model.types import Floats
from training import whisper_init
from training.data.batches import Batch, HeardWindows, WindowSampler
from training.data.corpus import Corpus, fit_lip_gap, motion_statistics
from training.losses import MotionLoss, dimension_weights
from training.trainer import Losses, RunOptions, Trainer

STEPS = 25  # of the sampler
BATCH = 64
# shares of windows per guidance branch; the remaining 79 % have everything
NO_CONDITIONS = 0.08
REFERENCE_ONLY = 0.10
AUDIO_ONLY = 0.03
HEARING_BATCH = 128
AUDIO_ENCODER_SHARE = 0.4  # of the training time
WHISPER_PACE = 0.15  # of the learning rate, while the blocks of Whisper's learn
TOKENS = "audio.tokens."  # in the names of what Whisper has not
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


class AudioEncoderObjective:
    """The audio encoder alone, by `MotionNet.heard_speech`: a fraction of a denoising step's work.

    A diffusion loss teaches an encoder slowly, for the prefix and little noise explain most of
    it. So the encoder learns to hear first: how the tracked mouth moves, and which phones are
    spoken, the one thing that all voices have in common.
    """

    def __init__(
        self,
        net: MotionNet,
        windows: WindowSampler,
        loss: MotionLoss,
        before: MotionNet | None = None,
    ) -> None:
        """``before``: whose tokens a new encoder is to make where the motion is tracked (there the
        old one heard right), so that denoisers which know those go on."""
        self._net, self._windows, self._loss, self._before = net, windows, loss, before

    def losses(self) -> Losses:
        batch = self._windows.draw(HEARING_BATCH)
        cond = batch.conditions()
        tokens = self._net.audio_tokens(cond)
        heard, spoken = audio_encoder_losses(self._net, self._loss, batch, tokens)
        losses = {"loss": heard + SPOKEN_WEIGHT * spoken, "heard": heard, "spoken": spoken}
        if self._before is not None:
            with torch.no_grad():
                known = self._before.audio_tokens(cond)
            apart = ((tokens - known) ** 2).mean((1, 2)) / known.var()
            losses["alike"] = (apart * (batch.trust == 1)).mean()
            losses["loss"] = losses["loss"] + losses["alike"]
        return losses


def audio_encoder_losses(
    net: MotionNet, loss: MotionLoss, batch: Batch, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Scalars: error of the motion as heard in ``tokens``, and cross-entropy of what is spoken
    where it is known."""
    motion, logits = net.heard_speech(tokens)
    every = torch.cat([batch.clean_prefix, batch.x0], dim=1)
    heard = (loss(motion, every) * batch.trust).mean()
    spoken = -(batch.visemes * logits.log_softmax(2)).sum(2).mean()
    return heard, spoken


class TeacherObjective:
    """Denoising of random windows: `losses` is what the trainer minimises."""

    def __init__(
        self,
        net: MotionNet,
        windows: WindowSampler | HeardWindows,
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
        tokens = self._net.audio_tokens(cond)
        heard, spoken = audio_encoder_losses(self._net, self._loss, batch, tokens)
        loss = denoising + HEARD_WEIGHT * (heard + SPOKEN_WEIGHT * spoken)
        return {"loss": loss, "denoising": denoising, "heard": heard, "spoken": spoken}


@dataclass(frozen=True)
class Beginning:
    """What a teacher's training starts from; ``mean`` and ``std`` (58,) stay as they are."""

    net: MotionNet
    mean: Tensor
    std: Tensor
    before: MotionNet | None = None  # see `AudioEncoderObjective`


def fresh(corpus: Corpus, config: NetConfig) -> Beginning:
    """A network that knows nothing."""
    return Beginning(MotionNet(config), *motion_statistics(corpus))


def continued(path: Path) -> Beginning:
    """The teacher of ``path``; raises ``ValueError`` where it holds none."""
    known = load_weights(path)
    if known.net.config.guided or not known.net.config.visemes:
        raise ValueError(f"--start {path} is no teacher: {known.net.config}")
    return Beginning(known.net.train().requires_grad_(True), known.mean, known.std)


def audio_encoder_from_whisper(
    beginning: Beginning, file: Path, blocks: int, speech: Sequence[Floats]
) -> Beginning:
    """The same network, but that its encoder of sound is the first ``blocks`` of Whisper's of
    ``file``; ``speech``: to tell our bands from Whisper's by.

    Raises ``ValueError`` as `whisper_init.begin`.
    """
    before = beginning.net
    net = MotionNet(replace(before.config, whisper_blocks=blocks))
    whisper_init.begin(cast(WhisperBlocks, net.audio), file, speech)
    own = {k: v for k, v in net.state_dict().items() if k.startswith("audio.")}
    rest = {k: v for k, v in before.state_dict().items() if not k.startswith("audio.")}
    net.load_state_dict(own | rest)
    return replace(beginning, net=net, before=before.requires_grad_(False))


def train_teacher(corpus: Corpus, options: RunOptions, beginning: Beginning, seed: int) -> Path:
    """Both parts of a teacher's training; returns the weights' path,
    ``options.folder``/teacher.safetensors."""
    to_hear = replace(options, folder=options.folder / "audio-encoder")
    train_audio_encoder_stage(corpus, _part(to_hear, AUDIO_ENCODER_SHARE), beginning, seed)
    return train_denoising(corpus, _part(options, 1 - AUDIO_ENCODER_SHARE), beginning, seed)


def train_audio_encoder_stage(
    corpus: Corpus, options: RunOptions, beginning: Beginning, seed: int
) -> Path:
    """Teaches the encoder of sound of ``beginning`` in place, Whisper's blocks at a fraction of the
    pace. Returns ``options.folder``/audio-encoder.safetensors: a teacher, its denoiser unchanged.
    """
    random = torch.Generator().manual_seed(seed)
    net, mean, std = beginning.net, beginning.mean, beginning.std
    if net.config.whisper_blocks:
        options = replace(options, peak_rate=WHISPER_PACE * options.peak_rate)
    trainer: Trainer[MotionNet] = Trainer(net, options, random, TOKENS)
    voices = WindowSampler(corpus, mean, std, random, HEARING_TRACKED)
    objective = AudioEncoderObjective(net, voices, _loss(corpus, beginning), beginning.before)
    path = options.folder / "audio-encoder.safetensors"
    trainer.run(objective.losses, lambda: _keep(trainer, beginning, path))
    net.load_state_dict(trainer.averaged.state_dict())
    return path


def train_denoising(corpus: Corpus, options: RunOptions, beginning: Beginning, seed: int) -> Path:
    """Teaches ``beginning`` to denoise, all but Whisper's blocks, which have learned to hear;
    returns ``options.folder``/teacher.safetensors."""
    random = torch.Generator().manual_seed(seed)
    net = beginning.net
    knows = bool(net.config.whisper_blocks)
    net.audio.requires_grad_(not knows)
    trainer: Trainer[MotionNet] = Trainer(net, options, random)
    windows = WindowSampler(corpus, beginning.mean, beginning.std, random)
    heard = HeardWindows(windows, net.audio) if knows else windows
    objective = TeacherObjective(net, heard, _loss(corpus, beginning), random)
    path = options.folder / "teacher.safetensors"
    trainer.run(objective.losses, lambda: _keep(trainer, beginning, path))
    return path


def _loss(corpus: Corpus, beginning: Beginning) -> MotionLoss:
    return MotionLoss(beginning.mean, beginning.std, fit_lip_gap(corpus), dimension_weights())


def _keep(trainer: Trainer[MotionNet], beginning: Beginning, path: Path) -> None:
    facts = weights_facts("teacher", STEPS, trainer.step)
    save_weights(path, MotionWeights(trainer.averaged, beginning.mean, beginning.std, facts))


def _part(options: RunOptions, share: float) -> RunOptions:
    return replace(options, minutes=share * options.minutes)
