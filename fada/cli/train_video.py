"""``fada train video-teacher``, ``video-student`` and ``video-student-multibranch``.

Students distil video-tiny's teacher (a file) or, for ``video-student``, EchoMimic (a folder).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from model.video.config import tiny_config
from training.distributed import join_world
from training.guidance_distillation import DistillConfig
from training.trainer import RunOptions
from training.video import echomimic, tiny
from training.video.clips import VideoClips
from training.video.device import Compute
from training.video.grid import open_clips

ROLES = ("video-teacher", "video-student", "video-student-multibranch")
RATE = 5e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the video roles."""
    video = parser.add_argument_group("video roles")
    add_cache_argument(video)
    video.add_argument(
        "--batch", type=int, help="windows per step [teacher 8, student 4, EchoMimic 1]"
    )
    video.add_argument("--device", default="cpu", help="torch device [%(default)s]")
    video.add_argument(
        "--recompute",
        action="store_true",
        help="activation checkpointing: a fraction of the memory, a third more time",
    )


def add_cache_argument(parser: argparse._ActionsContainer) -> None:
    """Add the flags that choose where GRID's frames are decoded to."""
    parser.add_argument(
        "--cache", type=Path, help="folder for GRID's decoded frames [grid-video beside --out]"
    )
    parser.add_argument(
        "--side", type=int, default=64, help="side of GRID's squares in pixels [%(default)s]"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or resume from the checkpoint in ``--out``. Returns the exit code."""
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch {args.batch}, expected 1 or more")
    with join_world(torch.device(args.device)) as (world, device):
        compute = Compute(device, args.bf16, args.recompute, world)
        with world.main_first():
            clips = open_clips(args.data, args.cache or args.out.parent / "grid-video", args.side)
        path = _train(args, clips, compute)
        if world.is_main:
            print(path)
    return 0


def _train(args: argparse.Namespace, clips: VideoClips, compute: Compute) -> Path:
    if args.train_audio_encoder:
        raise ValueError("--train-audio-encoder is for students of motion")
    real_size = args.role != "video-teacher" and args.teacher.is_dir()
    distill = DistillConfig(
        args.role == "video-student", args.scales == "embedding", args.supervision
    )
    default_rate = echomimic.RATE if real_size else RATE
    rate = default_rate if args.rate is None else args.rate
    options = RunOptions(args.out, args.minutes, args.steps, peak_rate=rate)
    if args.role == "video-teacher":
        return tiny.train_teacher(
            clips,
            tiny_config(clips.side),
            options,
            compute=compute,
            seed=args.seed,
            start=args.start,
            batch=args.batch or tiny.TEACHER_BATCH,
        )
    if real_size:
        if not distill.guided or distill.embedded_scales or args.start is not None:
            raise ValueError(
                "EchoMimic can only be distilled into a fresh video-student with tokens: no "
                f"--start, no --scales embedding, no role {args.role!r}"
            )
        return echomimic.train_student(
            clips,
            args.teacher,
            options,
            compute=compute,
            seed=args.seed,
            supervision=args.supervision,
            batch=args.batch or echomimic.BATCH,
        )
    return tiny.train_student(
        clips,
        args.teacher,
        options,
        compute=compute,
        seed=args.seed,
        start=args.start,
        config=distill,
        batch=args.batch or tiny.STUDENT_BATCH,
    )
