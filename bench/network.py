"""The network's engine against plain torch: milliseconds a window, and whether pictures agree.

    python bench/network.py

Both think of the same windows with the same seeds on one core. A picture's PSNR is between the two,
drawn at 512 pixels.
"""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import torch
from stages import BATCHES, EXAMPLES, heard

from bench.live.report import processor
from engines.select import motion_engine
from model.models import load_pipeline
from model.pipeline import StudentPipeline
from model.portrait.image import load_picture
from model.types import Floats, Reference, Window, WindowTask

PORTRAIT = Path("presenter.jpg")


def thought(
    pipeline: StudentPipeline, reference: Reference, windows: list[Window], batch: int
) -> tuple[Floats, float]:
    """(batch, T, D) motion, and milliseconds of a step of ``batch`` windows."""
    states = [pipeline.start(seed) for seed in range(batch)]
    guidance, steps = pipeline.metadata.guidance, pipeline.metadata.steps
    made, spent = [], []
    for window in windows:
        tasks = [WindowTask(window, state, reference, guidance, steps) for state in states]
        start = time.perf_counter()
        results = pipeline.step(tasks)
        spent.append(time.perf_counter() - start)
        states = [state for _, state in results]
        made.append(np.stack([latents for latents, _ in results]))
    return np.concatenate(made, axis=1), 1e3 * float(np.median(spent))


def main() -> None:
    cv2.setNumThreads(1)
    compiled, eager = load_pipeline(engine=motion_engine), load_pipeline()
    torch.set_num_threads(1)
    reference = compiled.space.encode_reference(load_picture((EXAMPLES / PORTRAIT).read_bytes()))
    windows, _ = heard(EXAMPLES / "speech.wav")
    print(f"{processor()}, one core; ms a step by batch")
    for batch in BATCHES:
        motion, fast_ms = thought(compiled, reference, windows, batch)
        truth, plain_ms = thought(eager, reference, windows, batch)
        print(
            f"  {batch}: torch {plain_ms:.1f}, compiled {fast_ms:.1f}, {plain_ms / fast_ms:.1f} x"
        )
    off = float(np.sqrt(((motion - truth) ** 2).mean()) / truth.std(axis=(0, 1)).max())
    print(f"motion is off by {off:.4f} of its spread (root mean square)")
    draw = compiled.space.decoder(reference, 512, "portrait").decode
    worst = min(
        10 * np.log10(255.0**2 / max(float(((a.astype(float) - b) ** 2).mean()), 1e-9))
        for a, b in zip([f.copy() for f in draw(motion[0])], draw(truth[0]), strict=True)
    )
    print(f"pictures agree to {worst:.1f} dB or more")


if __name__ == "__main__":
    main()
