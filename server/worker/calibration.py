"""What a window costs on this machine, measured when a worker starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from model.audio.stream import SpeechStream
from model.portrait.image import load_picture
from model.types import DEFAULT_SIZE, FPS, SessionState, WindowTask
from server.process import usable_cores
from server.worker.capacity import Capacity
from server.worker.pipelines import encode_portrait

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

log = logging.getLogger("fada.worker")

_PORTRAIT = Path(__file__).parents[1] / "static" / "examples" / "presenter.jpg"
_ROUNDS = 3
_SESSIONS = 4  # what they share of the network's time belongs to the cost
_TOO_SLOW = 100  # times real time


def calibrate(
    pipelines: Mapping[str, AvatarPipeline], *, workers: int, max_sessions: int
) -> Capacity:
    """The capacity of one of ``workers`` on this machine; blocks, see `window_cost_s`.

    Costs are relative to the first pipeline's, per second of video.
    """
    costs_s = {name: window_cost_s(pipeline) for name, pipeline in pipelines.items()}
    hops_s = {name: pipeline.window_spec.hop_s for name, pipeline in pipelines.items()}
    default = next(iter(pipelines))
    cost_s, hop_s = costs_s[default], hops_s[default]
    log.info("a window of %s costs %.0f ms", default, cost_s * 1000)
    return Capacity(
        cores=cores_per_worker(workers),
        window_s=cost_s,
        hop_s=hop_s,
        max_sessions=max_sessions,
        relative_costs={n: s / hops_s[n] * hop_s / cost_s for n, s in costs_s.items()},
    )


def window_cost_s(pipeline: AvatarPipeline) -> float:
    """CPU seconds of one session's window, denoised, drawn and encoded at the default size.

    Blocks for some rounds. The first warm everything up and are not counted; a model that is far
    too slow is measured once only. Nothing else may run in this process meanwhile.
    """
    reference = encode_portrait(pipeline, load_picture(_PORTRAIT.read_bytes()))
    decoder = pipeline.space.decoder(reference, DEFAULT_SIZE, "portrait")
    muxer = FragmentedMP4Muxer(decoder.width, decoder.height, FPS)
    metadata, window_spec = pipeline.metadata, pipeline.window_spec
    stream = SpeechStream(window_spec)
    pcm = np.zeros(window_spec.hop * SAMPLE_RATE // FPS, np.float32)

    def run_round(states: Sequence[SessionState]) -> tuple[list[SessionState], float]:
        """The next states, and the cost of one session: its share of a batch, and its drawing."""
        window = stream.window(states[0].window_index, window_spec.hop, rest=True)
        tasks = [
            WindowTask(window, s, reference, metadata.guidance, metadata.steps) for s in states
        ]
        began_s = time.process_time()
        results = pipeline.step(tasks)
        denoised_s = time.process_time()
        muxer.add(decoder.decode(results[0][0]), pcm)
        drawing_s = time.process_time() - denoised_s
        cost_s = (denoised_s - began_s) / len(states) + drawing_s
        return [state for _, state in results], cost_s

    states = [pipeline.start(seed) for seed in range(_SESSIONS)]
    _, alone_s = run_round(states[:1])
    if alone_s > _TOO_SLOW * window_spec.hop_s:
        return alone_s
    states, _ = run_round(states)
    costs_s = []
    for _ in range(_ROUNDS):
        states, cost_s = run_round(states)
        costs_s.append(cost_s)
    return sum(costs_s) / _ROUNDS


def cores_per_worker(workers: int) -> float:
    """This worker's share of the machine's cores."""
    return usable_cores() / workers
