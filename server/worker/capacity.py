"""How many live sessions a worker can hold, by measurement.

Knows: what one window costs here, and how quickly windows are made at the moment. Does not know
who asks for a place (`server.broker.client`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from model.audio.live import LiveWindower
from model.audio.windows import HOP
from model.conditioning import FPS
from model.pipeline import AvatarPipeline, WindowTask
from server.media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from server.worker.portraits import encode_portrait

HOP_S = HOP / FPS
_PORTRAIT = Path(__file__).parents[1] / "static" / "examples" / "presenter.jpg"
_ROUNDS = 3
_TOGETHER = 4  # sessions: what they share of the network's time belongs to the cost

# Of a core's time, what windows may take: snapshots, the broker, the API need some, too.
_SHARE = 0.7
# Parts of its media time that making a window takes. A session makes one at a time: at 1 it falls
# behind. Above the first no more sessions are taken, below the second one more than was reckoned.
_STRAINED, _EASY = 0.8, 0.4
_MEMORY = 20  # windows


def window_cost_s(pipeline: AvatarPipeline) -> float:
    """CPU seconds of one session's window, thought, drawn and encoded at the student's own size.

    Blocks for some rounds, the first of which is not counted, for it warms everything up. Nothing
    else may run in this process meanwhile.
    """
    reference = encode_portrait(pipeline, _PORTRAIT.read_bytes())
    decoder = pipeline.space.decoder(reference, pipeline.info.size, "portrait")
    muxer = FragmentedMP4Muxer(decoder.width, decoder.height, FPS)
    states = [pipeline.start(seed) for seed in range(_TOGETHER)]
    sound, pcm = LiveWindower(), np.zeros(HOP * SAMPLE_RATE // FPS, np.float32)
    began_s = 0.0
    for number in range(_ROUNDS + 1):
        if number == 1:
            began_s = time.process_time()
        window = sound.window(number, HOP, rest=True)
        info = pipeline.info
        tasks = [WindowTask(window, s, reference, info.guidance, info.steps) for s in states]
        results = pipeline.step(tasks)
        states = [state for _, state in results]
        for latents, _ in results:
            muxer.add(decoder.decode(latents), pcm)
    return (time.process_time() - began_s) / (_ROUNDS * _TOGETHER)


def own_cores(workers: int) -> float:
    """This worker's share of the cores, when so many run on this machine."""
    known = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return len(known) / workers


class Capacity:
    """``cores`` of which a window of a session takes ``window_s``; never more than ``most``."""

    def __init__(self, cores: float, window_s: float, most: int) -> None:
        self._most = most
        self._reckoned = max(1, min(most, int(cores * HOP_S * _SHARE / window_s)))
        self._pace: float | None = None

    def made(self, took_s: float, media_s: float) -> None:
        """A live fragment of ``media_s`` was made in ``took_s``, without what was waited for."""
        pace = took_s / media_s
        before = pace if self._pace is None else self._pace
        self._pace = before + (pace - before) / _MEMORY

    @property
    def strained(self) -> bool:
        """Whether live sessions are about to fall behind: offline jobs must wait."""
        return self._pace is not None and self._pace > _STRAINED

    def places(self, running: int) -> int:
        """How many live sessions there may be, given that so many are running."""
        if running == 0:
            self._pace = None
        if self.strained:
            return min(running, self._reckoned)
        if running >= self._reckoned and self._pace is not None and self._pace < _EASY:
            return min(running + 1, self._most)
        return self._reckoned
