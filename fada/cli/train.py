"""``fada train teacher`` and ``fada train student``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fada.cli import train_video
from model.motion.checkpoint import load_weights
from model.motion.network import NetConfig
from training.data.build import build_corpus
from training.data.corpus import Corpus, load_grid
from training.data.phones import VISEMES
from training.guidance_distillation import DistillConfig, train_student
from training.sample_weighting import SUPERVISION
from training.step_distillation import train_step_distilled
from training.teacher import (
    TeacherInit,
    load_teacher,
    new_teacher,
    train_audio_encoder,
    train_denoising,
    train_teacher,
    with_whisper_encoder,
)
from training.trainer import RunOptions
from training.weight_interpolation import interpolate_audio_encoder

RATE = 1e-3
_SPEECH_FOR_BANDS = 40  # clips
STUDENTS = ("student", "step-distill", "student-multibranch")
TEACHING = {
    "audio-encoder": train_audio_encoder,
    "denoising": train_denoising,
    "teacher": train_teacher,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "role",
        choices=(*TEACHING, *STUDENTS, *train_video.ROLES),
        help="which network: the teacher, or only its audio encoder, or only what comes after; "
        "a student with guidance tokens, the same for two steps, or one without tokens; of motion, "
        "or of video",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the tracked GRID clips (motion.npz)"
    )
    parser.add_argument(
        "--speech", type=Path, help="folder of other voices (manifest.csv), mouths inferred"
    )
    parser.add_argument(
        "--synthetic", type=Path, help="folder of `fada corpus build`, mouths inferred"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for weights, checkpoint and TensorBoard"
    )
    parser.add_argument("--teacher", type=Path, help="student: the teacher's weights")
    parser.add_argument("--start", type=Path, help="weights to begin from instead of fresh ones")
    parser.add_argument(
        "--supervision",
        choices=tuple(SUPERVISION),
        default="mixed",
        help="student: what supervises it; all but mixed are ablations [%(default)s]",
    )
    parser.add_argument(
        "--scales",
        choices=("tokens", "embedding"),
        default="tokens",
        help="student: how the guidance scales enter the network [%(default)s]",
    )
    parser.add_argument(
        "--train-audio-encoder",
        action="store_true",
        help="student: train the teacher's encoder of sound along (an ablation)",
    )
    parser.add_argument(
        "--audio-layers",
        type=int,
        default=NetConfig.audio_layers,
        help="of a teacher's encoder that begins with nothing [%(default)s]",
    )
    parser.add_argument(
        "--whisper",
        type=Path,
        help="teacher: Whisper tiny's model.bin (CTranslate2), whose first blocks its encoder "
        "begins as",
    )
    parser.add_argument(
        "--whisper-blocks", type=int, default=3, help="how many of them (%(default)s)"
    )
    parser.add_argument(
        "--interpolate",
        type=Path,
        nargs=2,
        metavar=("EARLY", "LATE"),
        help="denoising: two stages of `fada train audio-encoder`, whose encoders' interpolation "
        "replaces --start's",
    )
    parser.add_argument(
        "--between", type=float, default=0.4, help="how far from EARLY to LATE (%(default)s)"
    )
    parser.add_argument(
        "--init-interp",
        type=float,
        default=1.0,
        help="student: keep weights so far on the way from its start to what it learned "
        "(%(default)s); less than 1 forgets less of --start",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("EYES", "HEAD"),
        help="motion student: how loud the noise of the eyes, and of brows and head, is when it is "
        "served; more than 1 makes up for the variety that few steps lose (1 1)",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="training time (%(default)s)")
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--rate", type=float, help="peak learning rate [0.001, video 0.0005]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (%(default)s)")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="multiply in bfloat16: faster on GPUs and on CPUs with AMX or AVX512-BF16",
    )
    train_video.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains; a run whose ``--out`` holds a checkpoint goes on from it. Returns the exit code.

    Raises ``ValueError`` for data that is not there or flags that do not fit.
    """
    if args.minutes <= 0 or (args.steps is not None and args.steps < 1):
        raise ValueError(f"--minutes {args.minutes} --steps {args.steps}, expected more than 0")
    if args.role.endswith(STUDENTS) and args.teacher is None:
        raise ValueError("a student needs --teacher, the weights that `fada train teacher` wrote")
    if args.role == "step-distill" and args.start is None:
        raise ValueError(
            "step distillation needs --start, the weights that `fada train student` wrote"
        )
    if args.interpolate is not None and args.role != "denoising":
        raise ValueError(f"--interpolate is for `fada train denoising`, not {args.role}")
    if tuple(args.temperature) != (1.0, 1.0) and args.role not in STUDENTS:
        raise ValueError(f"--temperature is for a motion student, not {args.role}")
    torch.set_num_threads(args.threads)
    if args.role in train_video.ROLES:
        return train_video.run(args)
    phones = args.out / "phones.json"
    corpus = build_corpus(args.data, args.speech, args.synthetic, phones=phones, seed=args.seed)
    rate = RATE if args.rate is None else args.rate
    options = RunOptions(args.out, args.minutes, args.steps, peak_rate=rate, bf16=args.bf16)
    if args.role in TEACHING:
        path = TEACHING[args.role](corpus, options, _teacher_init(args, corpus), seed=args.seed)
    else:
        config = DistillConfig(
            guided=args.role != "student-multibranch",
            embedded_scales=args.scales == "embedding",
            supervision=args.supervision,
            init_interp=args.init_interp,
            temperature=tuple(args.temperature),
            train_audio_encoder=args.train_audio_encoder,
        )
        teach = train_step_distilled if args.role == "step-distill" else train_student
        path = teach(corpus, args.teacher, options, seed=args.seed, start=args.start, config=config)
    print(path)
    return 0


def _teacher_init(args: argparse.Namespace, corpus: Corpus) -> TeacherInit:
    torch.manual_seed(args.seed)
    if args.start is None:
        config = NetConfig(visemes=len(VISEMES), audio_layers=args.audio_layers)
        init = new_teacher(corpus, config)
    else:
        init = load_teacher(args.start)
    if args.interpolate is not None:
        early, late = (load_weights(path).net for path in args.interpolate)
        interpolate_audio_encoder(init.net, early, late, share=args.between)
    if args.whisper is None:
        return init
    speech = load_grid(args.data).samples[:_SPEECH_FOR_BANDS]
    return with_whisper_encoder(init, args.whisper, args.whisper_blocks, speech=speech)
