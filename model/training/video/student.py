"""video-tiny's students: distilled by the same objective as the motion student's.

Knows: which networks, windows and loss go into `StudentObjective`. Does not know: its formulas.
"""

from __future__ import annotations

from pathlib import Path

from model.diffusion.once import Once
from model.motion.weights import weights_facts
from model.training.distill import LIMITS, STEPS, StudentObjective
from model.training.trainer import RunOptions, Trainer
from model.training.video.clips import VideoClips
from model.training.video.machine import Machine
from model.training.video.teacher import tiny_net, windows_and_loss
from model.video.tiny import TinyNet, tiny_student_of
from model.video.weights import save_net

BATCH = 4


def train_student(
    clips: VideoClips,
    teacher_path: Path,
    options: RunOptions,
    machine: Machine,
    seed: int,
    start: Path | None,
    guided: bool,
    supervision: str = "mixed",
    batch: int = BATCH,
) -> Path:
    """Distils the teacher and returns the weights' path, ``options.folder``/student.safetensors.

    ``guided``: takes the scales as tokens (``fast``), else is run in three branches
    (``balanced``). ``start``: a student's weights to go on from; fresh ones take the teacher's.
    """
    random = machine.random(seed)
    with machine.chosen():
        teacher = tiny_net(teacher_path).to(machine.device)
        student = tiny_student_of(teacher, guided) if start is None else tiny_net(start)
        if student.config.guided != guided:
            raise ValueError(f"--start {start} is a student of the other kind")
        student.to(machine.device).train().requires_grad_(True)
        windows, loss = windows_and_loss(clips, student.config, random, machine)
        trainer: Trainer[TinyNet] = Trainer(student, options, random)
        machine.thrifty(student)
        objective = StudentObjective(
            machine.precise(student),
            machine.precise(Once(teacher)),
            windows,
            loss,
            random,
            supervision,
            guided,
            batch,
        )
        path = options.folder / "student.safetensors"

        def keep() -> None:
            limits = LIMITS if guided else None
            facts = weights_facts("student", STEPS, trainer.step, limits)
            save_net(path, trainer.averaged, facts)

        trainer.run(objective.losses, keep)
    return path
