"""Ablations of the distillation: the same student, trained without one of its parts.

``bench/ablations.py --data GRID --speech SPEECH --synthetic CORPUS --teacher FILE --out DIR``

Trains a student per recipe from the same teacher, with the same seed and number of steps, and
prints the ``--row`` arguments for `fada evaluate --table`. Existing students are not trained again.
With ``--start FILE``, a student of six steps, the recipes are those of step distillation.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from training.data.build import build_corpus
from training.data.corpus import Corpus
from training.guidance_distillation import DistillConfig, train_student
from training.step_distillation import train_step_distilled
from training.trainer import RunOptions

RECIPES = {
    "as shipped": DistillConfig(),
    "teacher only": DistillConfig(supervision="teacher"),
    "data only": DistillConfig(supervision="data"),
    "fixed weight": DistillConfig(supervision="fixed"),
    "scale embedding": DistillConfig(embedded_scales=True),
    "data at any scale": DistillConfig(supervision="any-scale"),
    "data at any noise": DistillConfig(supervision="any-noise"),
    "tracked data only": DistillConfig(supervision="tracked"),
    "noised recordings only": DistillConfig(on_policy=False),
    "encoder trained along": DistillConfig(train_audio_encoder=True),
    "no broad data": DistillConfig(),
}
# What step distillation does not take is left out.
STEP_RECIPES = (
    "as shipped", "teacher only", "data only", "fixed weight", "tracked data only",
    "data at any noise", "no broad data",
)  # fmt: skip
TEMPERATURE = (1.2, 1.5)  # of step distillation, as shipped


def tracked_only(corpus: Corpus) -> Corpus:
    """Only the clips with tracked motion."""
    return corpus.subset((corpus.confidence == 1).numpy())


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech", "--synthetic", "--teacher", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a student of six steps")
    parser.add_argument(
        "--only", action="append", choices=RECIPES, help="a recipe; may be repeated [all]"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    phones = args.out / "phones.json"
    corpus = build_corpus(args.data, args.speech, args.synthetic, phones=phones, seed=0)
    for name in args.only or (STEP_RECIPES if args.start else RECIPES):
        folder = args.out / name.replace(" ", "-").replace("'", "")
        path = folder / "student.safetensors"
        if not (folder / "done").exists():
            learned_from = tracked_only(corpus) if name == "no broad data" else corpus
            train(learned_from, folder, RECIPES[name], args)
            (folder / "done").touch()
        print(f"--row '{args.steps} steps, {name}={path}'", flush=True)


def train(corpus: Corpus, folder: Path, config: DistillConfig, args: argparse.Namespace) -> None:
    """Write ``folder``/student.safetensors."""
    # Limited by steps, not by the day, so that a slower machine trains the same.
    rate = 4e-4 if args.start else 7e-4
    options = RunOptions(folder, minutes=24 * 60, steps=args.steps, peak_rate=rate)
    distil = train_student
    if args.start:
        distil, config = train_step_distilled, replace(config, temperature=TEMPERATURE)
    distil(corpus, args.teacher, options, seed=0, start=args.start, config=config)


if __name__ == "__main__":
    main()
