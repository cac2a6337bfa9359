"""video-tiny's teacher: a diffusion model of video, each condition left out at times."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.diffusion.schedule import CosineSchedule, add_noise
from model.motion.checkpoint import weights_facts
from model.video.config import TinyConfig
from model.video.tiny import PatchCodec, TinyAudioEncoder, TinyNet
from model.video.weights import load_net, save_net
from training.distributed import ALONE, Team
from training.guidance_distillation import own_prefix
from training.teacher import STEPS, draw_times, dropped
from training.trainer import Losses, RunOptions, Trainer
from training.video.clips import VideoClips
from training.video.device import Machine
from training.video.losses import loss_of, noise_weight
from training.video.windows import VideoWindows, training_clips

BATCH = 8
HEARING_BATCH = 64
AUDIO_ENCODER_SHARE = 0.08  # of the training time
HEARING_RATE = 1e-3
OWN_EVERY = 2  # updates: then the frames before a window are of the network's own making


class Listener(nn.Module):
    """A sound encoder, and a linear estimate of the mouth from each moment that it heard."""

    def __init__(self, sound: TinyAudioEncoder, mouth: int) -> None:
        super().__init__()
        self.sound = sound
        self.mouth = nn.Linear(sound.places.shape[1], mouth)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, R, ROW_DIM) → (B, R, K)."""
        return torch.as_tensor(self.mouth(self.sound.moments(rows)))


class VideoAudioEncoderObjective:
    """The sound encoder alone: what the tracked mouth does, from the sound.

    A hundredth of a denoising step's work. The denoising loss teaches an encoder slowly: the past
    and little noise explain most of a picture, and the mouth is 3 % of it.
    """

    def __init__(self, net: Listener, windows: VideoWindows, batch: int = HEARING_BATCH) -> None:
        self._net, self._windows, self._batch = net, windows, batch

    def losses(self) -> Losses:
        batch = self._windows.draw_heard(self._batch)
        known = batch.known.float()
        error = (self._net(batch.audio) - batch.mouth).square()
        mean = (error.mean(2) * known).sum() / known.sum()
        gap = (error[:, :, -1] * known).sum() / known.sum()
        return {"loss": mean + gap, "mouth": mean, "lip_gap": gap}


class VideoTeacherObjective:
    """Denoising of random windows: `losses` is what the trainer minimises."""

    def __init__(
        self,
        net: TinyNet,
        windows: VideoWindows,
        random: torch.Generator,
        machine: Machine,
        batch: int = BATCH,
    ) -> None:
        self._net, self._windows = machine.precise(net), windows
        self._random, self._batch = random, batch
        self._schedule = CosineSchedule()
        self._drawn = 0

    def losses(self) -> Losses:
        self._drawn += 1
        own = self._drawn % OWN_EVERY == 0
        *before, batch = self._windows.draw_run(self._batch, 2 if own else 1)
        cond = batch.conditions()
        if own:
            past = own_prefix(self._net, before[0], batch, {}, self._schedule, self._random)
            cond["prefix"] = past[0]
        cond["has_audio"], cond["has_reference"] = dropped(self._batch, self._random)
        t = draw_times(self._batch, self._random)
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t)
        distance = loss_of(batch)(self._net(x_t, t, cond), batch.x0)
        _, sigma = self._schedule.alpha_sigma(t)
        loss = (distance * noise_weight(sigma) * batch.trust).mean()
        return {"loss": loss, "distance": distance.mean()}


def train_teacher(
    clips: VideoClips,
    options: RunOptions,
    machine: Machine,
    seed: int,
    start: Path | None,
    config: TinyConfig,
    batch: int = BATCH,
) -> Path:
    """Trains on ``clips`` and returns the weights' path, ``options.folder``/teacher.safetensors.

    ``start``: weights to begin with, whose sizes are kept; the sound encoder then hears already.
    """
    random = machine.random(seed)
    with machine.chosen():
        net = TinyNet(config) if start is None else tiny_net(start)
        net.to(machine.device).train().requires_grad_(True)
        windows = windows_of(clips, net.config, random, machine)
        if start is None:
            learn_to_hear(net, windows, options, random, machine.team)
        trainer: Trainer[TinyNet] = Trainer(net, options, random, team=machine.team)
        machine.thrifty(net)
        objective = VideoTeacherObjective(net, windows, random, machine, batch)
        path = options.folder / "teacher.safetensors"

        def keep() -> None:
            save_net(path, trainer.averaged, weights_facts("teacher", STEPS, trainer.step))

        trainer.run(objective.losses, keep)
    return path


def learn_to_hear(
    net: TinyNet,
    windows: VideoWindows,
    options: RunOptions,
    random: torch.Generator,
    team: Team = ALONE,
) -> None:
    """The first part of a teacher's time; ``net.sound`` is taught in place."""
    # Of a copy: a team's trainer takes apart what it trains.
    listener = Listener(copy.deepcopy(net.sound), windows.mouth_numbers)
    part = replace(
        options,
        folder=options.folder / "audio-encoder",
        minutes=AUDIO_ENCODER_SHARE * options.minutes,
        peak_rate=HEARING_RATE,
    )
    trainer: Trainer[Listener] = Trainer(listener, part, random, team=team)
    trainer.run(VideoAudioEncoderObjective(listener, windows).losses, lambda: None)
    net.sound.load_state_dict(trainer.averaged.sound.state_dict())


def windows_of(
    clips: VideoClips, config: TinyConfig, random: torch.Generator, machine: Machine
) -> VideoWindows:
    """What a network of ``config`` learns on. Raises ``ValueError`` for other squares than its."""
    if clips.latents is not None or clips.side != config.side:
        kind = "an autoencoder's latents" if clips.latents is not None else "pixels"
        raise ValueError(
            f"{clips.folder} holds {kind} of {clips.side} px, expected pixels of {config.side} px"
        )
    chosen = training_clips(clips)
    codec, kept = PatchCodec(config.patch), config.unet.prefix_frames
    return VideoWindows(clips, chosen, codec, kept, random, machine.device)


def tiny_net(path: Path) -> TinyNet:
    """A video-tiny network in single precision. Raises ``ValueError`` for any other file."""
    net, _ = load_net(path, torch.float32)
    if not isinstance(net, TinyNet):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a video-tiny network")
    return net
