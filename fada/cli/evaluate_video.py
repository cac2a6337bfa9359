"""`fada evaluate-video`: the paper's table on held-out clips.

Writes a Markdown table and, beside it, sheets of frames: the true video above, a row below it for
each network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import torch

from fada.cli.train_video import add_cache_argument
from model.types import Guidance
from training.video.evaluation import (
    VideoEvaluator,
    baselines,
    evaluate_rows,
    markdown,
    network_row,
)
from training.video.grid import open_clips
from training.video.metrics import contact_sheet
from training.video.windows import held_out_clips

SHEETS, COLUMNS, SCALE = 3, 12, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, help="GRID's folder, or one of `fada dataset build`"
    )
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS[:STEPS]",
        help="a network of the table; teachers and students alike",
    )
    parser.add_argument("--out", type=Path, required=True, help="the table (.md), sheets beside it")
    add_cache_argument(parser)
    parser.add_argument("--clips", type=int, default=20, help="held-out clips [%(default)s]")
    parser.add_argument(
        "--named",
        default="",
        metavar="PREFIX",
        help="only clips whose names begin so: 'rendered/' for those of `fada dataset draw`",
    )
    parser.add_argument(
        "--mobilenet", type=Path, help="torchvision's MobileNetV2 weights, for Fréchet distances"
    )
    parser.add_argument("--audio-cfg", type=float, help="scales other than each network's own")
    parser.add_argument("--reference-cfg", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Write table and sheets.

    Raises ``ValueError`` for data or weights that are not there or flags that do not fit.
    """
    if (args.audio_cfg is None) != (args.reference_cfg is None):
        raise ValueError("--audio-cfg and --reference-cfg are given together")
    guidance = None if args.audio_cfg is None else Guidance(args.audio_cfg, args.reference_cfg)
    torch.set_num_threads(args.threads)
    clips = open_clips(args.data, args.cache or args.out.parent / "grid-video", args.side)
    chosen = held_out_clips(clips, args.clips, args.named)
    if not chosen:
        raise ValueError(
            f"{args.data} holds no clip to judge by: every tenth is held out"
            + (f", of those named {args.named}…" if args.named else "")
        )
    rows = baselines(clips)
    rows += [network_row(text, clips, seed=args.seed, guidance=guidance) for text in args.row]
    figures, videos = evaluate_rows(VideoEvaluator(clips, chosen, args.mobilenet), rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(markdown(figures, chosen))
    shown = [name for name in videos if name != "still portrait"]
    for k in range(min(SHEETS, len(chosen))):
        picture = contact_sheet(COLUMNS, SCALE, [videos[name][k] for name in shown])
        path = args.out.with_name(f"{args.out.stem}-{k + 1}.png")
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    print(args.out)
    return 0
