"""What distillation spares: milliseconds a window of teacher and students, plain and as served.

    python bench/speedup.py [--teacher FILE]

One core, each one's own steps, default scales; windows of one session and of eight at once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from stages import EXAMPLES

from engines.registry import fastest
from model.audio.windows import windows_of
from model.conditioning import Window
from model.motion.actions import REFERENCE_DIM
from model.motion.weights import load_weights
from model.pipeline import WindowTask
from model.student_pipeline import StudentPipeline
from model.students import WEIGHTS, motion_pipeline
from model.training.rollout import MotionOnly, reference_of
from server.bench.report import processor

ENGINES = {"plain torch": None, "as served": fastest}
SECONDS = 8
BATCHES = (1, 8)
ROUNDS = 3  # all networks in turn, so that a busy moment hits them alike


def beginning(path: Path) -> list[Window]:
    """Those of the beginning of a recording at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32")
    return windows_of(samples[: SECONDS * rate])


def spent_ms(pipeline: StudentPipeline, windows: list[Window], batch: int) -> list[float]:
    """Of each step of ``batch`` sessions."""
    states = [pipeline.start(seed) for seed in range(batch)]
    reference = reference_of(np.zeros(REFERENCE_DIM, np.float32))
    info, spent = pipeline.info, []
    for window in windows:
        tasks = [WindowTask(window, s, reference, info.guidance, info.steps) for s in states]
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
    files = {name: WEIGHTS / f"motion-{name}.safetensors" for name in ("balanced", "fast")}
    files = {"teacher": args.teacher, **files}
    print(f"{processor()}, one core; ms a step, median\n")
    print("| | sessions | " + " | ".join(files) + " | teacher / fast |")
    print("| --- |" + " ---: |" * (len(files) + 2))
    for title, engine in ENGINES.items():
        pipelines = {
            name: motion_pipeline(name, load_weights(path), MotionOnly(), engine)
            for name, path in files.items()
        }
        for batch in BATCHES:
            spent: dict[str, list[float]] = {name: [] for name in files}
            for _ in range(ROUNDS):
                for name, pipeline in pipelines.items():
                    spent[name] += spent_ms(pipeline, windows, batch)
            took = {name: float(np.median(values)) for name, values in spent.items()}
            cells = " | ".join(f"{ms:.1f}" for ms in took.values())
            print(f"| {title} | {batch} | {cells} | {took['teacher'] / took['fast']:.1f} |")


if __name__ == "__main__":
    main()
