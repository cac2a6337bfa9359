"""Speed-up by distillation: milliseconds per window of teacher and students.

    python bench/speedup.py [--teacher FILE]

In plain torch and as served, on one core, at default scales, for one session and for eight at once.
Each network takes its own number of steps; the fast student more as well, and the teacher also as
few as the fast student. A branch of guidance that has no weight at those scales is not evaluated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch

from bench.live.report import processor
from bench.steps import EXAMPLES, run_steps
from engines.select import motion_engine
from model.audio.stream import windows_of
from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.rollout import MotionOnly, reference_of
from model.portrait.blendshapes import REFERENCE_DIM
from model.types import Window

ENGINES = {"plain torch": None, "as served": motion_engine}
SECONDS = 8
BATCHES = (1, 8)
MORE = (("teacher", 2), ("teacher", 6), ("fast", 4), ("fast", 6))  # other numbers of steps
ROUNDS = 3  # over all networks, so that load from elsewhere affects them alike


def first_windows(path: Path) -> list[Window]:
    """The windows of the first `SECONDS` of a recording at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32")
    return windows_of(samples[: SECONDS * rate])


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=WEIGHTS / "motion-teacher.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = reference_of(np.zeros(REFERENCE_DIM, np.float32))
    windows = first_windows(EXAMPLES / "speech.wav")
    files = {
        "teacher": args.teacher,
        "balanced": WEIGHTS / "motion-balanced.safetensors",
        "fast": WEIGHTS / "motion-fast.safetensors",
    }
    print(
        f"{processor()}, one core; median ms per window; in brackets: speed-up over the teacher\n"
    )
    head = [*files, *(f"{name}, {steps} steps" for name, steps in MORE)]
    print("| | sessions | " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) + 1))
    for title, engine in ENGINES.items():
        loaded = {
            name: motion_pipeline(name, load_weights(path), MotionOnly(), engine=engine)
            for name, path in files.items()
        }
        runs = [(pipeline, pipeline.metadata.steps) for pipeline in loaded.values()]
        runs += [(loaded[name], steps) for name, steps in MORE]
        for batch in BATCHES:
            spent: list[list[float]] = [[] for _ in runs]
            for _ in range(ROUNDS):
                for (pipeline, steps), values in zip(runs, spent, strict=True):
                    values += run_steps(pipeline, reference, windows, batch=batch, steps=steps)[1]
            teacher, *rest = (float(np.median(values)) for values in spent)
            cells = [f"{teacher:.1f}", *(f"{ms:.1f} ({teacher / ms:.1f})" for ms in rest)]
            print(f"| {title} | {batch} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
