"""Milliseconds per window of video-tiny with OpenVINO on one and on two threads, in turn.

python bench/threads.py
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch

from bench.live.report import processor
from engines.example_inputs import video_inputs
from engines.export import conditions_of
from engines.openvino_convert import compiled
from model.audio.log_mel import LOG_MEL
from model.diffusion.cached_context import CachedContext
from model.video.tiny import TinyNet
from model.video.weights import load_net

WEIGHTS = Path(__file__).parents[1] / "model" / "weights" / "video-tiny.safetensors"
ROUNDS, STEPS = 12, 6


def main() -> None:
    net, _ = load_net(WEIGHTS, torch.float32)
    assert isinstance(net, TinyNet)
    inputs = video_inputs(net, LOG_MEL, net.config.latent_shape)
    engines = {
        threads: CachedContext(compiled(net, inputs(2), threads=threads)) for threads in (1, 2)
    }
    spent: dict[int, list[float]] = {threads: [] for threads in engines}
    for _ in range(ROUNDS):
        window = inputs(1)  # new conditions, so the context is computed again
        window["prefix"] = torch.randn_like(window["prefix"])
        for threads, engine in engines.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                engine(window["x_t"], window["t"], conditions_of(window))
            spent[threads].append(1e3 * (time.perf_counter() - start))
    print(f"{processor()}; ms per window of {STEPS} evaluations, medians of {ROUNDS}")
    for threads, times in spent.items():
        print(f"  {threads} thread(s): {median(times):.0f}")


if __name__ == "__main__":
    main()
