"""Ablations of the distillation: the same student, trained without one of its parts.

``bench/ablations.py --data GRID --speech SPEECH --synthetic CORPUS --teacher FILE --out DIR``

Trains a student per recipe from the same teacher, with the same seed and number of steps, and
prints the ``--row`` arguments for `fada evaluate --table`. Existing students are not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.data.build import build_corpus
from training.data.corpus import Corpus
from training.guidance_distillation import DistillConfig, train_student
from training.trainer import RunOptions

RECIPES = {
    "as shipped": DistillConfig(),
    "teacher only": DistillConfig(supervision="teacher"),
    "data only": DistillConfig(supervision="data"),
    "fixed weight": DistillConfig(supervision="fixed"),
    "scale embedding": DistillConfig(embedded_scales=True),
    "data at any scale": DistillConfig(supervision="any-scale"),
    "noised recordings only": DistillConfig(on_policy=False),
    "encoder trained along": DistillConfig(train_audio_encoder=True),
    "no broad data": DistillConfig(),
}


def tracked_only(corpus: Corpus) -> Corpus:
    """Only the clips with tracked motion."""
    return corpus.subset((corpus.confidence == 1).numpy())


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech", "--synthetic", "--teacher", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument(
        "--only", action="append", choices=RECIPES, help="a recipe; may be repeated [all]"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    phones = args.out / "phones.json"
    corpus = build_corpus(args.data, args.speech, args.synthetic, phones=phones, seed=0)
    for name in args.only or RECIPES:
        config = RECIPES[name]
        folder = args.out / name.replace(" ", "-").replace("'", "")
        path = folder / "student.safetensors"
        if not (folder / "done").exists():
            # Limited by steps, not by the day, so that a slower machine trains the same.
            options = RunOptions(folder, minutes=24 * 60, steps=args.steps, peak_rate=7e-4)
            learned_from = tracked_only(corpus) if name == "no broad data" else corpus
            train_student(learned_from, args.teacher, options, seed=0, start=None, config=config)
            (folder / "done").touch()
        print(f"--row '{args.steps} steps, {name}={path}'", flush=True)


if __name__ == "__main__":
    main()
