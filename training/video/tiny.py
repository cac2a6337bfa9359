"""Train video-tiny: its teacher by denoising, its students by guidance distillation."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.diffusion.cached_context import CachedContext
from model.diffusion.schedule import CosineSchedule, add_noise
from model.types import ScaleLimits
from model.video.config import TinyConfig
from model.video.tiny import PatchCodec, TinyAudioEncoder, TinyNet, tiny_student_of
from model.video.weights import load_net, save_net
from model.weights_file import weights_metadata
from training.distributed import SINGLE_PROCESS, World
from training.guidance_distillation import STEPS as STUDENT_STEPS
from training.guidance_distillation import (
    DistillConfig,
    StudentObjective,
    generated_prefix,
)
from training.teacher import STEPS as TEACHER_STEPS
from training.teacher import draw_timesteps, drop_conditions
from training.trainer import Losses, RunOptions, Trainer
from training.video.clips import VideoClips
from training.video.device import Compute
from training.video.losses import loss_of, noise_weight
from training.video.windows import VideoWindows, training_clips

TEACHER_BATCH, STUDENT_BATCH = 8, 4
AUDIO_ENCODER_BATCH = 64
AUDIO_ENCODER_SHARE = 0.08  # of a teacher's training time
AUDIO_ENCODER_RATE = 1e-3
GENERATED_PREFIX_EVERY = 2  # updates
# Audio and reference scales of a student. Trained up to 4 on both, a student that starts from the
# teacher gains contrast in every window (docs/experiments/video.md).
LIMITS: ScaleLimits = ((1.0, 3.0), (1.0, 2.0))


class MouthRegressor(nn.Module):
    """An audio encoder with a linear head that predicts the mouth's shape in each frame."""

    def __init__(self, encoder: TinyAudioEncoder, mouth_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.mouth = nn.Linear(encoder.places.shape[1], mouth_dim)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, R, ROW_DIM) → (B, R, mouth_dim)."""
        return torch.as_tensor(self.mouth(self.encoder.moments(rows)))


class VideoAudioEncoderObjective:
    """Pretrain the audio encoder: predict the tracked mouth from sound alone.

    It costs a hundredth of a denoising step. The denoising loss alone teaches an encoder slowly:
    the prefix explains most of a picture, and the mouth is 3 % of it.
    """

    def __init__(
        self, net: MouthRegressor, windows: VideoWindows, batch: int = AUDIO_ENCODER_BATCH
    ) -> None:
        self._net, self._windows, self._batch = net, windows, batch

    def losses(self) -> Losses:
        """Scalars: ``mouth`` over all mouth features, ``lip_gap`` over the last one, and their
        sum."""
        batch = self._windows.draw_audio(self._batch)
        known = batch.known.float()
        error = (self._net(batch.audio) - batch.mouth).square()
        mean = (error.mean(2) * known).sum() / known.sum()
        gap = (error[:, :, -1] * known).sum() / known.sum()
        return {"loss": mean + gap, "mouth": mean, "lip_gap": gap}


class VideoTeacherObjective:
    """Denoise random windows. Conditions are dropped at random; every second update starts from a
    prefix that the network generated itself."""

    def __init__(
        self,
        net: TinyNet,
        windows: VideoWindows,
        random: torch.Generator,
        *,
        compute: Compute,
        batch: int = TEACHER_BATCH,
    ) -> None:
        self._net, self._windows = compute.autocast(net), windows
        self._random, self._batch = random, batch
        self._schedule = CosineSchedule()
        self._updates = 0

    def losses(self) -> Losses:
        """Scalars: ``distance`` is unweighted, ``loss`` weighted by noise level and confidence."""
        self._updates += 1
        generated = self._updates % GENERATED_PREFIX_EVERY == 0
        *before, batch = self._windows.draw_run(self._batch, 2 if generated else 1)
        cond = batch.conditions()
        if generated:
            cond["prefix"], _ = generated_prefix(
                self._net,
                before[0],
                batch,
                scales={},
                schedule=self._schedule,
                random=self._random,
            )
        cond["has_audio"], cond["has_reference"] = drop_conditions(self._batch, self._random)
        t = draw_timesteps(self._batch, self._random)
        eps = torch.randn(batch.x0.shape, generator=self._random)
        x_t = add_noise(self._schedule, batch.x0, eps, t=t)
        distance = loss_of(batch)(self._net(x_t, t, cond), batch.x0)
        _, sigma = self._schedule.alpha_sigma(t)
        loss = (distance * noise_weight(sigma) * batch.confidence).mean()
        return {"loss": loss, "distance": distance.mean()}


def train_teacher(
    clips: VideoClips,
    config: TinyConfig,
    options: RunOptions,
    *,
    compute: Compute,
    seed: int,
    start: Path | None,
    batch: int = TEACHER_BATCH,
) -> Path:
    """Train a teacher on ``clips``.

    ``start``: weights to continue from; their sizes replace ``config``, and the audio encoder is
    not pretrained again. Returns ``options.folder``/teacher.safetensors.
    """
    random = compute.generator(seed)
    with compute.default_device():
        net = TinyNet(config) if start is None else load_tiny(start)
        net.to(compute.device).train().requires_grad_(True)
        windows = tiny_windows(clips, net.config, random, compute=compute)
        if start is None:
            pretrain_audio_encoder(net, windows, options, random=random, world=compute.world)
        trainer: Trainer[TinyNet] = Trainer(net, options, random, world=compute.world)
        compute.checkpoint_layers(net)
        objective = VideoTeacherObjective(net, windows, random, compute=compute, batch=batch)
        path = options.folder / "teacher.safetensors"

        def save() -> None:
            save_net(
                path, trainer.averaged, weights_metadata("teacher", TEACHER_STEPS, trainer.step)
            )

        trainer.run(objective.losses, save)
    return path


def pretrain_audio_encoder(
    net: TinyNet,
    windows: VideoWindows,
    options: RunOptions,
    *,
    random: torch.Generator,
    world: World = SINGLE_PROCESS,
) -> None:
    """Train ``net.audio_encoder`` in place for `AUDIO_ENCODER_SHARE` of the run's time."""
    # On a copy: the trainer shards what it trains.
    regressor = MouthRegressor(copy.deepcopy(net.audio_encoder), windows.mouth_dim)
    part = replace(
        options,
        folder=options.folder / "audio-encoder",
        minutes=AUDIO_ENCODER_SHARE * options.minutes,
        peak_rate=AUDIO_ENCODER_RATE,
    )
    trainer: Trainer[MouthRegressor] = Trainer(regressor, part, random, world=world)
    trainer.run(VideoAudioEncoderObjective(regressor, windows).losses, lambda: None)
    net.audio_encoder.load_state_dict(trainer.averaged.encoder.state_dict())


def train_student(
    clips: VideoClips,
    teacher_path: Path,
    options: RunOptions,
    *,
    compute: Compute,
    seed: int,
    start: Path | None,
    config: DistillConfig,
    batch: int = STUDENT_BATCH,
) -> Path:
    """Distil the teacher by `StudentObjective`.

    ``start``: a student to continue from instead of the teacher's weights. A guided student may
    start from a multi-branch one, which already takes few steps and only lacks the scale tokens.
    Returns ``options.folder``/student.safetensors. Raises ``ValueError`` if ``start`` is a student
    of another kind.
    """
    random = compute.generator(seed)
    with compute.default_device():
        teacher = load_tiny(teacher_path).to(compute.device)
        student = teacher if start is None else load_tiny(start)
        if start is None or (config.guided and not student.config.guided):
            student = tiny_student_of(student, config.guided, config.embedded_scales)
        kind = student.config.guided, student.config.unet.embedded_scales
        if kind != (config.guided, config.embedded_scales):
            raise ValueError(f"--start {start} is a student of the other kind")
        student.to(compute.device).train().requires_grad_(True)
        windows = tiny_windows(clips, student.config, random, compute=compute)
        trainer: Trainer[TinyNet] = Trainer(student, options, random, world=compute.world)
        compute.checkpoint_layers(student)
        objective = StudentObjective(
            compute.autocast(student),
            compute.autocast(CachedContext(teacher)),
            windows,
            loss_of=loss_of,
            random=random,
            supervision=config.supervision,
            guided=config.guided,
            batch=batch,
            limits=LIMITS,
            on_policy=config.on_policy,
        )
        path = options.folder / "student.safetensors"

        def save() -> None:
            limits = LIMITS if config.guided else None
            metadata = weights_metadata("student", STUDENT_STEPS, trainer.step, limits=limits)
            save_net(path, trainer.averaged, metadata)

        trainer.run(objective.losses, save)
    return path


def tiny_windows(
    clips: VideoClips, config: TinyConfig, random: torch.Generator, *, compute: Compute
) -> VideoWindows:
    """Training windows for a network of ``config``.

    Raises ``ValueError`` if ``clips`` holds latents or squares of another size.
    """
    if clips.latents is not None or clips.side != config.side:
        kind = "an autoencoder's latents" if clips.latents is not None else "pixels"
        raise ValueError(
            f"{clips.folder} holds {kind} of {clips.side} px, expected pixels of {config.side} px"
        )
    return VideoWindows(
        clips,
        training_clips(clips),
        PatchCodec(config.patch),
        prefix_frames=config.unet.prefix_frames,
        random=random,
        device=compute.device,
    )


def load_tiny(path: Path) -> TinyNet:
    """A video-tiny network in single precision. Raises ``ValueError`` for any other file."""
    net, _ = load_net(path, torch.float32)
    if not isinstance(net, TinyNet):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a video-tiny network")
    return net
