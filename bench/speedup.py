"""What distillation spares: milliseconds a window of teacher and students, plain and as served.

    python bench/speedup.py [--teacher FILE]

One core, default scales; the teacher's and the balanced student's own steps, the fast one's and
more; windows of one session and of eight at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from stages import EXAMPLES

from bench.live.report import processor
from engines.select import motion_engine
from model.audio.stream import windows_of
from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.rollout import MotionOnly, reference_of
from model.pipeline import StudentPipeline
from model.portrait.blendshapes import REFERENCE_DIM
from model.types import Window, WindowTask

ENGINES = {"plain torch": None, "as served": motion_engine}
SECONDS = 8
BATCHES = (1, 8)
MORE = (4, 6)  # steps of the fast student besides its own
ROUNDS = 3  # all networks in turn, so that a busy moment hits them alike


def beginning(path: Path) -> list[Window]:
    """Those of the beginning of a recording at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32")
    return windows_of(samples[: SECONDS * rate])


def spent_ms(
    pipeline: StudentPipeline, steps: int, windows: list[Window], batch: int
) -> list[float]:
    """Of each step of ``batch`` sessions."""
    states = [pipeline.start(seed) for seed in range(batch)]
    reference = reference_of(np.zeros(REFERENCE_DIM, np.float32))
    guidance, spent = pipeline.metadata.guidance, []
    for window in windows:
        tasks = [WindowTask(window, s, reference, guidance, steps) for s in states]
        start = time.perf_counter()
        made = pipeline.step(tasks)
        spent.append(1e3 * (time.perf_counter() - start))
        states = [state for _, state in made]
    return spent


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=WEIGHTS / "motion-teacher.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    windows = beginning(EXAMPLES / "speech.wav")
    files = {
        "teacher": args.teacher,
        "balanced": WEIGHTS / "motion-balanced.safetensors",
        "fast": WEIGHTS / "motion-fast.safetensors",
    }
    print(
        f"{processor()}, one core; ms a window, median; in brackets: times as fast as the teacher\n"
    )
    head = [*files, *(f"fast, {steps} steps" for steps in MORE)]
    print("| | sessions | " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) + 1))
    for title, engine in ENGINES.items():
        loaded = {
            name: motion_pipeline(name, load_weights(path), MotionOnly(), engine)
            for name, path in files.items()
        }
        runs = [(pipeline, pipeline.metadata.steps) for pipeline in loaded.values()]
        runs += [(loaded["fast"], steps) for steps in MORE]
        for batch in BATCHES:
            spent: list[list[float]] = [[] for _ in runs]
            for _ in range(ROUNDS):
                for (pipeline, steps), values in zip(runs, spent, strict=True):
                    values += spent_ms(pipeline, steps, windows, batch)
            teacher, *rest = (float(np.median(values)) for values in spent)
            cells = [f"{teacher:.1f}", *(f"{ms:.1f} ({teacher / ms:.1f})" for ms in rest)]
            print(f"| {title} | {batch} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
