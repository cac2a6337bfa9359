"""`fada evaluate`: figures of a motion student's lips, eyes and head.

Prints a line for each figure: held-out GRID clips, voices absent from training, and ten minutes of
speech and silence in one session. ``--table`` compares teachers and students instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.rollout import MotionOnly
from model.types import Guidance
from training.evaluation.evaluate import (
    PARTS,
    describe,
    evaluate_grid,
    evaluate_long,
    evaluate_music,
    generate,
    held_out_set,
)
from training.evaluation.metrics import figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the tracked GRID clips")
    parser.add_argument("--speech", type=Path, required=True, help="folder of other voices")
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS / "motion-fast.safetensors", help="the student's"
    )
    parser.add_argument("--clips", type=int, default=100, help="held-out GRID clips [%(default)s]")
    parser.add_argument("--voices", type=int, default=20, help="other voices [%(default)s]")
    parser.add_argument("--seeds", type=int, default=8, help="seeds per clip [%(default)s]")
    parser.add_argument("--steps", type=int, help="sampler steps; the student's own if not given")
    parser.add_argument("--audio-cfg", type=float)
    parser.add_argument("--reference-cfg", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-long", action="store_true", help="leave out the ten minutes")
    parser.add_argument(
        "--table", type=Path, help="write the comparison of all rows to this .md, a plot beside it"
    )
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS[:STEPS][@EYES,HEAD]",
        help="a row of the table: teacher or student, its steps, the temperature of its noise",
    )
    parser.add_argument(
        "--against", metavar="NAME", help="the row that others are compared with [the last]"
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="only two, two or one fifth of the clips and voices: choose on one part, report on "
        "another [all]",
    )


def run(args: argparse.Namespace) -> int:
    """Print the student's figures, or write a table of all rows."""
    torch.set_num_threads(args.threads)
    tests = held_out_set(
        args.data, args.speech, clips=args.clips, voices=args.voices, part=args.part
    )
    if args.table is not None:
        from training.evaluation.report import write_report  # matplotlib, only for a table

        write_report(tests, args.row, args.seeds, path=args.table, against=args.against)
        return 0
    pipeline = motion_pipeline("evaluated", load_weights(args.weights), MotionOnly())
    own = pipeline.metadata.guidance
    guidance = Guidance(
        own.audio if args.audio_cfg is None else args.audio_cfg,
        own.reference if args.reference_cfg is None else args.reference_cfg,
    )
    steps = args.steps or pipeline.metadata.steps
    evaluate_grid(pipeline, tests, args.seeds, guidance=guidance, steps=steps)
    made = generate(pipeline, tests.voices, 0, guidance=guidance, steps=steps)
    describe("other voices", figures(made, tests.voices, tests.lip_gap))
    evaluate_music(pipeline, tests.voices, tests.lip_gap)
    if not args.no_long:
        evaluate_long(pipeline, tests.voices, tests.lip_gap)
    return 0
