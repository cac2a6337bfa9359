"""video-tiny's students: distilled by the same objective as the motion student's."""

from __future__ import annotations

from pathlib import Path

from model.diffusion.cached_context import CachedContext
from model.motion.checkpoint import weights_facts
from model.types import ScaleLimits
from model.video.tiny import TinyNet, tiny_student_of
from model.video.weights import save_net
from training.guidance_distillation import STEPS, DistillConfig, StudentObjective
from training.trainer import RunOptions, Trainer
from training.video.clips import VideoClips
from training.video.device import Machine
from training.video.losses import loss_of
from training.video.teacher import tiny_net, windows_of

BATCH = 4
# Scales drawn: audio, reference. A student that began as the teacher and drew both up to 4 made
# pictures that gain contrast in every window (docs/experiments/video.md).
LIMITS: ScaleLimits = ((1.0, 3.0), (1.0, 2.0))


def train_student(
    clips: VideoClips,
    teacher_path: Path,
    options: RunOptions,
    machine: Machine,
    seed: int,
    start: Path | None,
    config: DistillConfig,
    batch: int = BATCH,
) -> Path:
    """Distils the teacher and returns the weights' path, ``options.folder``/student.safetensors.

    ``start``: a student's weights to go on from; fresh ones take the teacher's. From a
    ``balanced`` student a guided one starts with few steps learned and the scales to learn.
    """
    random = machine.random(seed)
    with machine.chosen():
        teacher = tiny_net(teacher_path).to(machine.device)
        student = teacher if start is None else tiny_net(start)
        if start is None or (config.guided and not student.config.guided):
            student = tiny_student_of(student, config.guided, config.embedded_scales)
        told = student.config.guided, student.config.unet.embedded_scales
        if told != (config.guided, config.embedded_scales):
            raise ValueError(f"--start {start} is a student of the other kind")
        student.to(machine.device).train().requires_grad_(True)
        windows = windows_of(clips, student.config, random, machine)
        trainer: Trainer[TinyNet] = Trainer(student, options, random, team=machine.team)
        machine.thrifty(student)
        objective = StudentObjective(
            machine.precise(student),
            machine.precise(CachedContext(teacher)),
            windows,
            loss_of,
            random,
            config.supervision,
            config.guided,
            batch,
            limits=LIMITS,
            own_paths=config.own_paths,
        )
        path = options.folder / "student.safetensors"

        def keep() -> None:
            limits = LIMITS if config.guided else None
            facts = weights_facts("student", STEPS, trainer.step, limits)
            save_net(path, trainer.averaged, facts)

        trainer.run(objective.losses, keep)
    return path
