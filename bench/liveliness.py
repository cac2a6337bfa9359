"""How lively a student's face is, by two choices: the head's spline and the noise's temperature.

    python bench/liveliness.py --data GRID --speech SPEECH [--temperatures 1,1.2,1.3]

Two Markdown tables. The head's differences over held-out clips, ×1000: the real speaker's, and of
one take as it was sampled and smoothed by each spline. And takes at each temperature: how they vary
and what they say, on the clips and on voices never heard.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.audio.windows import HOP, PREFIX
from model.conditioning import Floats
from model.motion.actions import ACTION_COUNT, MOTION_DIM, ROTATION
from model.motion.steady import BORDER, DAMPING, STIFFNESS, Spline, spline, steadied
from model.motion.weights import MotionWeights, load_weights
from model.students import WEIGHTS, motion_pipeline
from model.training.evaluation import HeldOut, held_out_set, run_speeches
from model.training.judging import (
    JAW,
    MotionFeatures,
    Spoken,
    border_jerk,
    correlation,
    diversity,
    figures,
    frechet_distance,
)
from model.training.rollout import MotionOnly

# λ, w, μ of `model.motion.steady`
SPLINES = ((10, 3, 3), (3, 3, 1), (3, 6, 1), (STIFFNESS, BORDER, DAMPING))
TAKES = 3


def said(weights: MotionWeights, spoken: list[Spoken], take: int) -> list[Floats]:
    """The motion (T, 58) of each, as in service."""
    pipeline = motion_pipeline("lively", weights, MotionOnly())
    first, info = take * len(spoken), pipeline.info
    return run_speeches(pipeline, spoken, first, info.guidance, info.steps)


def windows_with_past(motion: Floats) -> list[tuple[Floats, Floats]]:
    """(PREFIX, 58) before and (HOP, 58) of each whole window."""
    padded = np.concatenate([np.zeros((PREFIX, MOTION_DIM), np.float32), motion])
    starts = range(0, len(motion) - HOP + 1, HOP)
    return [(padded[i : i + PREFIX], padded[i + PREFIX : i + PREFIX + HOP]) for i in starts]


def sampled(motion: Floats) -> list[Floats]:
    """(HOP, 58) windows as they were before `steadied`, whose equation is solved for its x."""
    own, before = spline(STIFFNESS, BORDER, DAMPING)
    result = []
    for past, window in windows_with_past(motion):
        raw = window.copy()
        drawn = before @ past[-before.shape[1] :, ACTION_COUNT:]
        raw[:, ACTION_COUNT:] = np.linalg.solve(own, window[:, ACTION_COUNT:] - drawn)
        result.append(raw)
    return result


def smoothed(windows: list[Floats], by: Spline) -> Floats:
    """(T, 58), each window after what came out before it."""
    done = np.zeros((PREFIX, MOTION_DIM), np.float32)
    for window in windows:
        done = np.concatenate([done, steadied(done[-PREFIX:], window, by)])
    return done[PREFIX:]


def print_splines(weights: MotionWeights, tests: HeldOut) -> None:
    """The first table."""
    raw = [sampled(motion) for motion in said(weights, tests.clips, 0)]
    rows = {"the real speaker": tests.real, "as sampled": [np.concatenate(w) for w in raw]}
    for values in SPLINES:
        name = "λ {:g}, w {:g}, μ {:g}".format(*values)
        rows[name] = [smoothed(windows, spline(*values)) for windows in raw]
    print("| head | third difference | second difference | third, at borders over elsewhere |")
    print("| --- |" + " ---: |" * 3)
    for name, motions in rows.items():
        third, second = (
            np.concatenate([np.abs(np.diff(m[:, ROTATION], n, axis=0)).mean(1) for m in motions])
            for n in (3, 2)
        )
        border = border_jerk(motions, ROTATION)
        print(f"| {name} | {1e3 * third.mean():.3f} | {1e3 * second.mean():.3f} | {border:.2f} |")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def at_temperature(weights: MotionWeights, tests: HeldOut, temperature: float) -> dict[str, float]:
    """A row of the second table, by column: means over the takes."""
    warm = replace(weights, facts={**weights.facts, "temperature": temperature})
    takes = [said(warm, tests.clips, take) for take in range(TAKES)]
    corpus = tests.training
    real = np.split(corpus.motion.numpy(), corpus.first[1:].tolist())
    features = MotionFeatures(real)
    true_jaw = np.concatenate([m[:, JAW] for m in tests.real])
    jaws = [np.concatenate([m[:, JAW] for m in take]) for take in takes]
    away = [frechet_distance(features(take), features(tests.real)) for take in takes]
    clips = [figures(take, tests.clips, tests.lip_gap) for take in takes]
    voices = [
        figures(said(warm, tests.voices, take), tests.voices, tests.lip_gap)
        for take in range(TAKES)
    ]
    return {
        "temperature": temperature,
        "diversity": diversity(takes, corpus.motion.numpy().std(0)),
        "Fréchet": _mean(away),
        "jaw r": _mean([correlation(jaw, true_jaw) for jaw in jaws]),
        "blinks/min": _mean([f["blinks/min"] for f in clips]),
        "jerk, head × 1000": _mean([f["jerk, head × 1000"] for f in clips]),
        "voices: blinks/min": _mean([f["blinks/min"] for f in voices]),
        "best phone r": _mean([f["best phone r"] for f in voices]),
        "/p b m/ closed": _mean([f["/p b m/ closed"] for f in voices]),
    }


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "motion-fast.safetensors")
    parser.add_argument("--temperatures", default="1,1.2,1.3")
    parser.add_argument("--clips", type=int, default=25)
    parser.add_argument("--voices", type=int, default=40)
    args = parser.parse_args()
    tests = held_out_set(args.data, args.speech, args.clips, args.voices)
    weights = load_weights(args.weights)
    print_splines(weights, tests)
    print()
    for count, word in enumerate(args.temperatures.split(",")):
        row = at_temperature(weights, tests, float(word))
        if count == 0:
            print("| " + " | ".join(row) + " |\n|" + " ---: |" * len(row))
        print("| " + " | ".join(f"{value:.3f}" for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
