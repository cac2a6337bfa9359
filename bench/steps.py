"""Time a motion pipeline's steps over real speech, for the other benchmarks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.pipeline import StudentPipeline
from model.types import Floats, Reference, Window, WindowTask

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run_steps(
    pipeline: StudentPipeline,
    reference: Reference,
    windows: Sequence[Window],
    *,
    batch: int,
    steps: int | None = None,
) -> tuple[Floats, list[float]]:
    """Generate ``windows`` for ``batch`` sessions at once, seeds counted from 0.

    ``steps``: sampler steps, by default the student's. Returns motion (batch, T, D) and the
    milliseconds of each pipeline step.
    """
    states, guidance = [pipeline.start(seed) for seed in range(batch)], pipeline.metadata.guidance
    count = steps or pipeline.metadata.steps
    motion, spent_ms = [], []
    for window in windows:
        tasks = [WindowTask(window, state, reference, guidance, count) for state in states]
        start = time.perf_counter()
        results = pipeline.step(tasks)
        spent_ms.append(1e3 * (time.perf_counter() - start))
        states = [state for _, state in results]
        motion.append(np.stack([latents for latents, _ in results]))
    return np.concatenate(motion, axis=1), spent_ms
