"""What a window costs on this machine, measured when a worker starts or changes its engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from media.encoders import DEFAULT_ENCODING, Encoding
from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from model.audio.stream import SpeechStream
from model.portrait.image import load_upload
from model.types import DEFAULT_SIZE, FPS, Reference, SessionState, WindowTask
from server.process import usable_cores
from server.worker.batcher import Result
from server.worker.capacity import Capacity
from server.worker.pipelines import encode_portrait

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

log = logging.getLogger("fada.worker")

_PORTRAIT = Path(__file__).parents[1] / "static" / "examples" / "presenter.jpg"
_ROUNDS = 4  # of the default model; of another one, whose places are a multiple of its
_SESSIONS = 4  # what they share of the network's time belongs to the cost
_TOO_SLOW = 100  # times real time
_SHORT = 0.05  # of a window's length: what live sessions may wait for


@dataclass(frozen=True)
class WindowCost:
    """What one session's window costs: CPU seconds, denoised, drawn and encoded; seconds of the
    network's one thread, of which a GPU may be the larger part; and how long it lasts."""

    cpu_s: float
    network_s: float
    hop_s: float

    def share(self, cores: float) -> float:
        """Of a worker with ``cores``, for a session in real time."""
        return max(self.cpu_s / cores, self.network_s) / self.hop_s


class Calibration:
    """The windows' costs of one of ``workers`` on this machine, by model, the default first.

    Making one blocks, and nothing else may run in this process meanwhile. ``meet`` returns when
    the other workers that start here are about to measure too: what a window costs beside them is
    more than it costs alone.
    """

    def __init__(
        self,
        pipelines: Mapping[str, AvatarPipeline],
        workers: int,
        encoding: Encoding = DEFAULT_ENCODING,
        *,
        meet: Callable[[], None] = lambda: None,
    ) -> None:
        self._cores = cores_per_worker(workers)
        references: dict[str, Reference] = {}  # one for all models of a latent space
        self._costs = dict[str, WindowCost]()
        for name, pipeline in pipelines.items():
            space = pipeline.space.name
            if space not in references:
                references[space] = example_reference(pipeline)
            first = not self._costs
            self._costs[name] = window_cost(
                pipeline,
                references[space],
                encoding=encoding,
                rounds=_ROUNDS if first else 1,
                meet=meet if first else lambda: None,
            )

    def capacity(self, max_sessions: int) -> Capacity:
        default = next(iter(self._costs.values()))
        capacity = Capacity(
            cores=self._cores,
            window_s=default.cpu_s,
            hop_s=default.hop_s,
            max_sessions=max_sessions,
        )
        self.apply(capacity)
        return capacity

    def update(self, name: str, cost: WindowCost, capacity: Capacity) -> None:
        """The model's windows now cost ``cost``."""
        self._costs[name] = cost
        self.apply(capacity)

    def apply(self, capacity: Capacity) -> None:
        shares = {name: cost.share(self._cores) for name, cost in self._costs.items()}
        (name, cost), share = next(iter(self._costs.items())), next(iter(shares.values()))
        log.info(
            "a window of %s costs %.1f ms of CPU, %.1f ms of the network's thread",
            name, cost.cpu_s * 1000, cost.network_s * 1000,
        )  # fmt: skip
        capacity.set_cost(share, {name: other / share for name, other in shares.items()})


def example_reference(pipeline: AvatarPipeline) -> Reference:
    return encode_portrait(pipeline, load_upload(_PORTRAIT.read_bytes()))


def window_cost(
    pipeline: AvatarPipeline,
    reference: Reference,
    network: Executor | None = None,
    *,
    encoding: Encoding = DEFAULT_ENCODING,
    rounds: int = _ROUNDS,
    meet: Callable[[], None] = lambda: None,
) -> WindowCost:
    """What a window costs at the default size, in the costliest of ``rounds``; blocks for them.

    What comes before `meet` warms everything up and is not counted; a model that is far too slow is
    measured once only. ``network``: the thread of a worker that serves meanwhile. Then only the
    two threads' own time counts, and no batch keeps live sessions waiting for longer than one of
    theirs.
    """
    decoder = pipeline.space.decoder(reference, DEFAULT_SIZE, "portrait")
    muxer = FragmentedMP4Muxer(decoder.width, decoder.height, FPS, encoding=encoding)
    metadata, window_spec = pipeline.metadata, pipeline.window_spec
    stream = SpeechStream(window_spec)
    pcm = np.zeros(window_spec.hop * SAMPLE_RATE // FPS, np.float32)
    cpu_time = time.process_time if network is None else time.thread_time
    hop_s = window_spec.hop_s

    def step(tasks: list[WindowTask]) -> tuple[list[Result], float, float]:
        began_s, began_cpu_s = time.monotonic(), cpu_time()
        results = pipeline.step(tasks)
        cpu_s, took_s = cpu_time() - began_cpu_s, time.monotonic() - began_s
        # Less than it took where other processes had the cores; a wait for a GPU counts as CPU.
        return results, cpu_s, min(cpu_s, took_s)

    def denoise(states: Sequence[SessionState]) -> tuple[list[Result], WindowCost]:
        """What a batch gives, and a session's share of its cost."""
        window = stream.window(states[0].window_index, window_spec.hop, rest=True)
        tasks = [
            WindowTask(window, s, reference, metadata.guidance, metadata.steps) for s in states
        ]
        made = step(tasks) if network is None else network.submit(step, tasks).result()
        results, cpu_s, network_s = made
        cost = WindowCost(cpu_s=cpu_s / len(states), network_s=network_s / len(states), hop_s=hop_s)
        return results, cost

    def run_round(states: Sequence[SessionState]) -> tuple[list[SessionState], WindowCost]:
        """The next states, and the cost of one session: its share of a batch, and its drawing."""
        results, cost = denoise(states)
        began_cpu_s = cpu_time()
        muxer.add(decoder.decode(results[0][0]), pcm)
        cost = replace(cost, cpu_s=cost.cpu_s + cpu_time() - began_cpu_s)
        return [state for _, state in results], cost

    states = [pipeline.start(seed) for seed in range(_SESSIONS)]
    _, alone = run_round(states[:1])
    if max(alone.cpu_s, alone.network_s) > _TOO_SLOW * hop_s:
        return alone
    if network is not None:
        _, alone = run_round(states[:1])  # warm
        if alone.network_s > _SHORT * hop_s:
            return alone
    states = [state for _, state in denoise(states)[0]]  # drawing is warm
    meet()
    costs = []
    for _ in range(rounds):
        states, cost = run_round(states)
        costs.append(cost)
    return WindowCost(
        cpu_s=max(cost.cpu_s for cost in costs),
        network_s=max(cost.network_s for cost in costs),
        hop_s=hop_s,
    )


def cores_per_worker(workers: int) -> float:
    """This worker's share of the machine's cores."""
    return usable_cores() / workers
