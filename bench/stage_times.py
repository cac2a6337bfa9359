"""Time of each stage of a live window, on one core.

    python bench/stage_times.py [--size 512] [--portrait docs/examples/presenter.jpg]

A window is 320 ms of sound and 8 frames. The stages are the worker's code, each timed alone on real
motion and warm caches, so their sum is a lower bound of a window's cost; `fada bench live` includes
queues, sockets and waiting. With eight sessions on two cores a window may take 80 ms of one core.
"""

from __future__ import annotations

import argparse
import os
import time
import wave
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from bench.live.report import processor
from bench.steps import EXAMPLES, run_steps
from engines.select import motion_engine
from media.boxes import AUDIO_TRACK, VIDEO_TRACK, Run, fragment
from media.colour import to_yuv420
from media.encoders import AAC_FRAME, SAMPLE_RATE, AACEncoder, VideoEncoder
from media.fmp4 import KEY_INTERVAL
from model.audio.log_mel import HOP, LOG_MEL
from model.audio.stream import SpeechStream
from model.models import DEFAULT, Choice, load
from model.portrait.blendshapes import from_motion, shown_motion
from model.portrait.image import load_picture
from model.rendering.renderer import PortraitRenderer
from model.types import FPS, Floats, Window
from server.worker.live_planner import FRAGMENT_FRAMES

BATCHES = (1, 2, 4, 8)
CORES, SESSIONS = 2, 8


def median_ms(step: Callable[[int], object], count: int) -> float:
    """Median milliseconds of ``step(0)`` to ``step(count - 1)``."""
    spent = []
    for i in range(count):
        start = time.perf_counter()
        step(i)
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def speech_windows(path: Path) -> tuple[list[Window], float]:
    """The windows of a recording, streamed as in a live session, and milliseconds per window."""
    with wave.open(str(path)) as file:
        rate, pcm = file.getframerate(), file.readframes(file.getnframes())
    stream, windows, spent = SpeechStream(LOG_MEL, rate, output_rate=SAMPLE_RATE), [], []
    step = 2 * round(LOG_MEL.hop_s * rate)
    for start in range(0, len(pcm) - step, step):
        began = time.perf_counter()
        stream.push_pcm(pcm[start : start + step])
        stream.fill()
        if not stream.missing:
            windows.append(stream.window(len(windows), HOP))
            stream.take(HOP)
        spent.append(time.perf_counter() - began)
    return windows, 1e3 * float(np.median(spent))


def render_times(
    renderer: PortraitRenderer, latents: Floats
) -> tuple[list[np.ndarray], float, float]:
    """Frames, milliseconds per frame, and the part of it for the mesh's vertices."""
    actions, poses = from_motion(shown_motion(latents), renderer.rest)
    count = len(latents)
    points = median_ms(lambda i: renderer.vertices(actions[i], poses[i]), count)
    whole = median_ms(lambda i: renderer.render(actions[i], poses[i]), count)
    return [frame.copy() for frame in renderer.decode(latents)], whole, points


def encode_times(frames: list[np.ndarray]) -> dict[str, float]:
    """Milliseconds per frame of each step from pixels to an MP4's samples."""
    height, width = frames[0].shape[:2]
    planes = [np.empty((height // n, width // n), np.uint8) for n in (1, 2, 2)]
    to_yuv420(frames[0], *planes)
    colours = median_ms(lambda i: to_yuv420(frames[i], *planes), len(frames))
    video = VideoEncoder(width, height, FPS)
    key, other = [], []
    for i, frame in enumerate(frames):
        start = time.perf_counter()
        video.encode(frame, key=i % KEY_INTERVAL == 0)
        (other if i % KEY_INTERVAL else key).append(time.perf_counter() - start)
    h264 = (float(np.median(key)) + (KEY_INTERVAL - 1) * float(np.median(other))) / KEY_INTERVAL
    sound = AACEncoder()
    tone = np.sin(np.arange(AAC_FRAME) * 0.05).astype(np.float32)
    aac = median_ms(lambda i: sound.encode(tone * np.float32(0.5 + i % 7 / 14)), 200)
    return {
        "colours, RGB to YUV": colours,
        "H.264, one keyframe a second": 1e3 * h264 - colours,
        "AAC": aac * SAMPLE_RATE / AAC_FRAME / FPS,
    }


def box_time() -> float:
    """Milliseconds per fragment for its MP4 boxes."""
    samples = [bytes(4000)] * FRAGMENT_FRAMES
    runs = [
        Run(VIDEO_TRACK, 0, samples, [512] * len(samples), False),
        Run(AUDIO_TRACK, 0, [bytes(250)] * 8, [1024] * 8, True),
    ]
    return median_ms(lambda i: fragment(i, runs), 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--portrait", type=Path, default=EXAMPLES / "presenter.jpg")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    pipeline = load(Choice((DEFAULT,)), motion_engine=motion_engine)[DEFAULT]
    torch.set_num_threads(1)
    reference = pipeline.space.encode_reference(load_picture(args.portrait.read_bytes()))
    windows, sound_ms = speech_windows(EXAMPLES / "speech.wav")
    runs = {n: run_steps(pipeline, reference, windows, batch=n) for n in BATCHES}
    network_ms = {n: float(np.median(spent)) / n for n, (_, spent) in runs.items()}
    renderer: PortraitRenderer = pipeline.space.decoder(reference, args.size, "portrait")
    frames, draw_ms, points_ms = render_times(renderer, runs[1][0][0])
    rows = {"sound: resampling, log-mel": sound_ms}
    rows[f"network, batch of {BATCHES[-1]}"] = network_ms[BATCHES[-1]]
    rows["rendering: vertices"] = HOP * points_ms
    rows["rendering: pixels"] = HOP * (draw_ms - points_ms)
    rows |= {name: HOP * ms for name, ms in encode_times(frames).items()}
    rows["boxes"] = HOP / FRAGMENT_FRAMES * box_time()
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"ms of one core for a window (8 frames, {args.size} pixels):")
    for name, ms in rows.items():
        print(f"  {name:32} {ms:6.1f}")
    budget = CORES * 1e3 * LOG_MEL.hop_s / SESSIONS
    print(f"  {'sum':32} {sum(rows.values()):6.1f}   of {budget:.0f} with {SESSIONS} sessions")
    by_batch = ", ".join(f"{n}: {ms:.1f}" for n, ms in network_ms.items())
    print(f"network, ms per window by batch: {by_batch}")


if __name__ == "__main__":
    main()
