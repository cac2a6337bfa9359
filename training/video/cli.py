"""``fada train video-teacher``, ``video-student``, ``video-student-multibranch``; the last two of
video-tiny's teacher (a file) or, ``video-student``, of EchoMimic (a folder).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from model.video.config import tiny_config
from training.distributed import joined_team
from training.guidance_distillation import DistillConfig
from training.trainer import RunOptions
from training.video import echomimic
from training.video.clips import VideoClips, load_clips
from training.video.device import Machine
from training.video.echomimic import train_real_student
from training.video.grid import grid_clips, is_grid
from training.video.student import BATCH as STUDENT_BATCH
from training.video.student import train_student
from training.video.teacher import BATCH as TEACHER_BATCH
from training.video.teacher import train_teacher

ROLES = ("video-teacher", "video-student", "video-student-multibranch")
RATE = 5e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that other roles do not take."""
    video = parser.add_argument_group("video roles")
    add_cache_argument(video)
    video.add_argument("--batch", type=int, help="windows a step [8, student 4, real size 1]")
    video.add_argument("--device", default="cpu", help="torch's name of it [%(default)s]")
    video.add_argument(
        "--recompute",
        action="store_true",
        help="gradient checkpointing: a fraction of the memory, a third more time",
    )


def add_cache_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--cache", type=Path, help="where GRID's frames are kept, decoded [grid-video beside --out]"
    )
    parser.add_argument(
        "--side", type=int, default=64, help="pixels of GRID's squares then [%(default)s]"
    )


def open_clips(data: Path, cache: Path, side: int) -> VideoClips:
    """GRID's folder, its frames decoded into ``cache`` once as squares of ``side`` pixels, or a
    folder of `fada dataset build`, as it was built."""
    return grid_clips(data, cache, side) if is_grid(data) else load_clips(data)


def run(args: argparse.Namespace) -> int:
    """Trains; a run whose ``--out`` holds a checkpoint goes on from it. Returns the exit code."""
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch {args.batch}, expected 1 or more")
    with joined_team(torch.device(args.device)) as (team, device):
        machine = Machine(device, args.bf16, args.recompute, team)
        with team.leader_first():
            clips = open_clips(args.data, args.cache or args.out.parent / "grid-video", args.side)
        path = _trained(args, clips, machine)
        if team.leads:
            print(path)
    return 0


def _trained(args: argparse.Namespace, clips: VideoClips, machine: Machine) -> Path:
    if args.train_audio_encoder:
        raise ValueError("--train-audio-encoder is for students of motion")
    real = args.role != "video-teacher" and args.teacher.is_dir()
    distill = DistillConfig(
        args.role == "video-student", args.scales == "embedding", args.supervision
    )
    given = echomimic.RATE if real else RATE
    rate = given if args.rate is None else args.rate
    options = RunOptions(args.out, args.minutes, args.steps, peak_rate=rate)
    if args.role == "video-teacher":
        config = tiny_config(clips.side)
        batch = args.batch or TEACHER_BATCH
        return train_teacher(clips, options, machine, args.seed, args.start, config, batch)
    if real:
        if not distill.guided or distill.embedded_scales or args.start is not None:
            raise ValueError(
                "of EchoMimic only a fresh video-student with tokens is made: no --start, "
                f"no --scales embedding, no role {args.role!r}"
            )
        batch, words = args.batch or echomimic.BATCH, args.supervision
        folder = args.teacher
        return train_real_student(clips, folder, options, machine, args.seed, words, batch)
    return train_student(
        clips,
        args.teacher,
        options,
        machine,
        args.seed,
        args.start,
        distill,
        args.batch or STUDENT_BATCH,
    )
