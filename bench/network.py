"""The student's engine against plain torch: milliseconds per window, and whether frames agree.

    python bench/network.py

Both generate the same windows with the same seeds on one core. The PSNR is between their frames,
rendered at 512 pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from bench.live.report import processor
from bench.stage_times import BATCHES, speech_windows
from bench.steps import EXAMPLES, run_steps
from engines.select import motion_engine
from model.models import DEFAULT, Choice, load
from model.portrait.image import load_picture

PORTRAIT = Path("presenter.jpg")


def main() -> None:
    cv2.setNumThreads(1)
    fast = Choice((DEFAULT,))
    compiled = load(fast, motion_engine=motion_engine)[DEFAULT]
    eager = load(fast)[DEFAULT]
    torch.set_num_threads(1)
    reference = compiled.space.encode_reference(load_picture((EXAMPLES / PORTRAIT).read_bytes()))
    windows, _ = speech_windows(EXAMPLES / "speech.wav")
    print(f"{processor()}, one core; ms per step by batch")
    for batch in BATCHES:
        motion, fast = run_steps(compiled, reference, windows, batch=batch)
        truth, plain = run_steps(eager, reference, windows, batch=batch)
        fast_ms, plain_ms = float(np.median(fast)), float(np.median(plain))
        print(
            f"  {batch}: torch {plain_ms:.1f}, compiled {fast_ms:.1f}, {plain_ms / fast_ms:.1f} x"
        )
    off = float(np.sqrt(((motion - truth) ** 2).mean()) / truth.std(axis=(0, 1)).max())
    print(f"RMS error of the motion: {off:.4f} of its standard deviation")
    draw = compiled.space.decoder(reference, 512, "portrait").decode
    worst = min(
        10 * np.log10(255.0**2 / max(float(((a.astype(float) - b) ** 2).mean()), 1e-9))
        for a, b in zip([f.copy() for f in draw(motion[0])], draw(truth[0]), strict=True)
    )
    print(f"PSNR of the frames: {worst:.1f} dB or more")


if __name__ == "__main__":
    main()
