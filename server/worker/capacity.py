"""How many live sessions a worker can hold, by measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from model.audio.log_mel import LOG_MEL
from model.audio.stream import SpeechStream
from model.portrait.image import load_picture
from model.types import DEFAULT_SIZE, FPS, SessionState, WindowTask
from server.process import usable_cores
from server.worker.portraits import encode_portrait

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

HOP_S = LOG_MEL.hop_s
_PORTRAIT = Path(__file__).parents[1] / "static" / "examples" / "presenter.jpg"
_ROUNDS = 3
_TOGETHER = 4  # sessions: what they share of the network's time belongs to the cost
_HOPELESS = 100  # times as slow as real time

# Of a core's time, what windows may take. Snapshots, the broker and the API need some, too, and
# side by side a window takes nearly twice the time that it takes alone: eight sessions on two cores
# are what keeps real time (docs/experiments/performance.md), and this is where they lie.
SHARE = 0.55
# Parts of its media time that making a window takes. A session makes one at a time: at 1 it falls
# behind. Above the first no more sessions are taken; above the second offline jobs wait; below the
# third there may be one session more than was reckoned. (Two sessions a core are at 0.3 where two
# cores are nearly all in use: a fifth session there, and all five fell behind.)
_FULL, _BUSY, _EASY = 0.8, 0.6, 0.25
_MEMORY = 8  # windows
_STALE_S = 2.0


def window_cost_s(pipeline: AvatarPipeline) -> float:
    """CPU seconds of one session's window, thought, drawn and encoded at the student's own size.

    Blocks for some rounds, the first of which are not counted, for they warm everything up; but a
    student that is hopelessly slow is not asked twice. Nothing else may run in this process
    meanwhile.
    """
    reference = encode_portrait(pipeline, load_picture(_PORTRAIT.read_bytes()))
    decoder = pipeline.space.decoder(reference, DEFAULT_SIZE, "portrait")
    muxer = FragmentedMP4Muxer(decoder.width, decoder.height, FPS)
    known, window_spec = pipeline.metadata, pipeline.window_spec
    stream = SpeechStream(window_spec)
    pcm = np.zeros(window_spec.hop * SAMPLE_RATE // FPS, np.float32)

    def round_of(states: Sequence[SessionState]) -> list[SessionState]:
        window = stream.window(states[0].window_index, window_spec.hop, rest=True)
        tasks = [WindowTask(window, s, reference, known.guidance, known.steps) for s in states]
        results = pipeline.step(tasks)
        for latents, _ in results:
            muxer.add(decoder.decode(latents), pcm)
        return [state for _, state in results]

    states = [pipeline.start(seed) for seed in range(_TOGETHER)]
    began_s = time.process_time()
    round_of(states[:1])
    alone_s = time.process_time() - began_s
    if alone_s > _HOPELESS * window_spec.hop_s:
        return alone_s
    states = round_of(states)
    began_s = time.process_time()
    for _ in range(_ROUNDS):
        states = round_of(states)
    return (time.process_time() - began_s) / (_ROUNDS * _TOGETHER)


def own_cores(workers: int) -> float:
    """This worker's share of the cores, when so many run on this machine."""
    return usable_cores() / workers


class Capacity:
    """``cores`` of which a window of a session, of ``hop_s`` of video, takes ``window_s``; never
    more places than ``most``.

    ``dearer`` says, of the students whose windows take more, how many times as much.
    """

    def __init__(
        self,
        cores: float,
        window_s: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        dearer: Mapping[str, float] | None = None,
        hop_s: float = HOP_S,
    ) -> None:
        self._dearer = dict(dearer or {})
        self._most, self._clock = most, clock
        self._reckoned = max(1, min(most, int(cores * hop_s * SHARE / window_s)))
        self._last_pace, self._made_s = _EASY, -math.inf
        self._beside_busy = False

    def made(self, took_s: float, media_s: float) -> None:
        """A live fragment of ``media_s`` was made in ``took_s``, without what was waited for."""
        # A first window is dearer than those that follow: it says little.
        before = _EASY if self._pace is None else self._pace
        self._last_pace = before + (took_s / media_s - before) / _MEMORY
        self._made_s = self._clock()

    @property
    def _pace(self) -> float | None:
        """``None`` when nothing was made of late: sessions that are silent need nothing."""
        return self._last_pace if self._clock() - self._made_s < _STALE_S else None

    @property
    def busy(self) -> bool:
        """Whether this worker's live sessions need all that there is."""
        return self._pace is not None and self._pace > _BUSY

    def beside(self, *, busy: bool) -> None:
        """Whether those of other workers on the same cores do."""
        self._beside_busy = busy

    @property
    def spare(self) -> bool:
        """Whether anything is left over for offline jobs."""
        return not (self.busy or self._beside_busy)

    def taken(self, models: Iterable[str]) -> int:
        """How many places the sessions of these students take."""
        return sum(max(1, round(self._dearer.get(model, 1.0))) for model in models)

    def places(self, running: int) -> int:
        """How many live sessions there may be, given that so many are running."""
        pace = self._pace
        if pace is None or running == 0:
            return self._reckoned
        if pace > _FULL:
            return min(running, self._reckoned)
        if pace < _EASY and running >= self._reckoned:
            return min(running + 1, self._most)
        return self._reckoned
