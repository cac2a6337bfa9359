"""Smoothing and temperature of a student's motion, compared with a real speaker's.

    python bench/smoothing.py --data GRID --speech SPEECH [--temperatures 1:1,1.2:1.6]

Prints three Markdown tables. Head and jaw over held-out clips: the real speaker's, and one seed's
as sampled and smoothed by each spline. And several seeds at each temperature (eyes:head):
diversity of the face and its parts, and figures of the clips and of unseen voices.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.audio.log_mel import HOP, PREFIX
from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import MotionWeights, load_weights
from model.motion.rollout import MotionOnly
from model.motion.smoothing import HEAD, HEAD_AT, LIPS, LIPS_AT, Smoothing, apply_spline
from model.portrait.blendshapes import ACTIONS, MOTION_DIM, ROTATION
from model.types import Floats
from training.evaluation.evaluate import HeldOut, generate, held_out_set
from training.evaluation.metrics import (
    JAW,
    MotionFeatures,
    Utterance,
    border_jerk,
    closed_share,
    correlation,
    diversity,
    figures,
    frechet_distance,
    gaps_of,
)

Integers = NDArray[np.intp]
# Splines to compare; the last one is in use.
HEADS = (Smoothing(10, 3, 3), Smoothing(3, 3, 1), Smoothing(3, 6, 1), HEAD)
MOUTHS = (Smoothing(0.01, 1, 0), Smoothing(0.02, 3, 0), Smoothing(0.05, 3, 0), LIPS)
SEEDS = 3
PARTS = {
    "mouth": LIPS_AT,
    "eyes": np.array([i for i, name in enumerate(ACTIONS) if name.startswith("eye")]),
    "brows": np.array([i for i, name in enumerate(ACTIONS) if name.startswith("brow")]),
    "head": HEAD_AT,
}
PARTS["all but the mouth"] = np.concatenate([PARTS[name] for name in ("eyes", "brows", "head")])


def speak(weights: MotionWeights, utterances: list[Utterance], seed: int) -> list[Floats]:
    """The motion (T, 58) of each utterance, as in service."""
    pipeline = motion_pipeline("lively", weights, MotionOnly())
    first, known = seed * len(utterances), pipeline.metadata
    return generate(pipeline, utterances, first, guidance=known.guidance, steps=known.steps)


def resmoothed(motion: Floats, at: Integers, *, old: Smoothing, new: Smoothing | None) -> Floats:
    """``motion`` (T, 58) with the latents ``at`` smoothed by ``new`` instead of ``old``.

    ``old`` is inverted by solving its equation; ``new`` None leaves the latents unsmoothed.
    """
    own, past = old.spline()
    before = np.zeros((PREFIX, MOTION_DIM), np.float32)
    padded, done = np.concatenate([before, motion]), before[:, at]
    for start in range(0, len(motion) - HOP + 1, HOP):
        prefix, window = padded[start : start + PREFIX, at], motion[start : start + HOP, at]
        raw = np.linalg.solve(own, window - past @ prefix[-past.shape[1] :])
        made = raw if new is None else apply_spline(new.spline(), done[-PREFIX:], raw)
        done = np.concatenate([done, made])
    result = motion[: len(done) - PREFIX].copy()
    result[:, at] = done[PREFIX:]
    return result


def print_splines(tests: HeldOut, motions: list[Floats]) -> None:
    """Print the first two tables, over whole windows."""
    truth = [m[: len(m) // HOP * HOP] for m in tests.real]

    def rough(some: list[Floats], columns: slice | list[int]) -> str:
        third, second = (
            np.concatenate([np.abs(np.diff(m[:, columns], n, axis=0)).mean(1) for m in some])
            for n in (3, 2)
        )
        border = border_jerk(some, columns)
        return f"{1e3 * third.mean():.3f} | {1e3 * second.mean():.3f} | {border:.2f}"

    heads = "third difference | second difference | third, at borders over elsewhere"
    print(f"| head | {heads} |\n| --- |" + " ---: |" * 3)
    print(f"| the real speaker | {rough(truth, ROTATION)} |")
    for by in (None, *HEADS):
        turned = [resmoothed(m, HEAD_AT, old=HEAD, new=by) for m in motions]
        print(f"| {_name(by)} | {rough(turned, ROTATION)} |")
    print(f"\n| jaw | {heads} | jaw r | /p b m/ closed |\n| --- |" + " ---: |" * 5)
    phones = [s.phones for s in tests.clips]

    def mouth(some: list[Floats]) -> str:
        pairs = [(m[:, JAW], real[:, JAW]) for m, real in zip(some, truth, strict=True)]
        r = correlation(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
        return f"{r:.3f} | {closed_share(gaps_of(some, tests.lip_gap), phones):.3f}"

    print(f"| the real speaker | {rough(truth, [JAW])} | {mouth(truth)} |")
    for by in (None, *MOUTHS):
        moved = [resmoothed(m, LIPS_AT, old=LIPS, new=by) for m in motions]
        print(f"| {_name(by)} | {rough(moved, [JAW])} | {mouth(moved)} |")


def _name(by: Smoothing | None) -> str:
    if by is None:
        return "as sampled"
    return f"λ {by.stiffness:g}, w {by.border:g}, μ {by.damping:g}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def at_temperature(
    weights: MotionWeights, tests: HeldOut, temperature: list[float]
) -> dict[str, float]:
    """A row of the third table, by column: means over the seeds."""
    warm = replace(weights, metadata={**weights.metadata, "temperature": temperature})
    by_seed = [speak(warm, tests.clips, seed) for seed in range(SEEDS)]
    corpus = tests.training
    real = np.split(corpus.motion.numpy(), corpus.first[1:].tolist())
    features = MotionFeatures(real)
    true_jaw = np.concatenate([m[:, JAW] for m in tests.real])
    jaws = [np.concatenate([m[:, JAW] for m in made]) for made in by_seed]
    spread = corpus.motion.numpy().std(0)
    varied = {
        f"diversity: {part}": diversity([[m[:, at] for m in made] for made in by_seed], spread[at])
        for part, at in PARTS.items()
    }
    distances = [frechet_distance(features(made), features(tests.real)) for made in by_seed]
    clips = [figures(made, tests.clips, tests.lip_gap) for made in by_seed]
    voices = [
        figures(speak(warm, tests.voices, seed), tests.voices, tests.lip_gap)
        for seed in range(SEEDS)
    ]
    return {
        "eyes": temperature[0],
        "head": temperature[1],
        "diversity": diversity(by_seed, spread),
        **varied,
        "Fréchet": _mean(distances),
        "jaw r": _mean([correlation(jaw, true_jaw) for jaw in jaws]),
        "blinks/min": _mean([f["blinks/min"] for f in clips]),
        "jerk, head × 1000": _mean([f["jerk, head × 1000"] for f in clips]),
        "head std, rad": _mean([f["head std, rad"] for f in clips]),
        "voices: blinks/min": _mean([f["blinks/min"] for f in voices]),
        "best phone r": _mean([f["best phone r"] for f in voices]),
        "/p b m/ closed": _mean([f["/p b m/ closed"] for f in voices]),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "motion-fast.safetensors")
    parser.add_argument("--temperatures", default="1:1,1.2:1.2,1.2:1.6")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--voices", type=int, default=40)
    args = parser.parse_args()
    tests = held_out_set(args.data, args.speech, clips=args.clips, voices=args.voices)
    weights = load_weights(args.weights)
    print_splines(tests, speak(weights, tests.clips, 0))
    print()
    for count, pair in enumerate(args.temperatures.split(",")):
        row = at_temperature(weights, tests, [float(part) for part in pair.split(":")])
        if count == 0:
            print("| " + " | ".join(row) + " |\n|" + " ---: |" * len(row))
        print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
