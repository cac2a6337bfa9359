"""How many live sessions a worker can hold, by measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from model.audio.log_mel import LOG_MEL

HOP_S = LOG_MEL.hop_s
# The share of a core's time that windows may take. Snapshots, the broker and the API need some, and
# side by side a window takes nearly twice the time that it takes alone: eight sessions on two cores
# keep real time (docs/experiments/performance.md), and this is the share that gives them.
CPU_SHARE = 0.55
# Load is the time that making a window takes, by its media time. A session makes one window at a
# time: at 1 it falls behind. Above _FULL no session is admitted; above _BUSY offline jobs wait;
# below _LIGHT there may be one session more than estimated. (Two sessions a core are at 0.3 where
# two cores are nearly all in use: with a fifth session there, all five fell behind.)
_FULL, _BUSY, _LIGHT = 0.8, 0.6, 0.25
_SMOOTHING_WINDOWS = 8
_STALE_S = 2.0


class Capacity:
    """Places for live sessions: estimated from a window's cost, corrected by the measured load."""

    def __init__(
        self,
        *,
        cores: float,
        window_s: float,
        max_sessions: int,
        hop_s: float = HOP_S,
        relative_costs: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A window of ``hop_s`` of video takes ``window_s`` of one of ``cores``.

        ``relative_costs`` as in `set_cost`; ``max_sessions`` may be changed later.
        """
        self.max_sessions, self._clock = max_sessions, clock
        self.set_cost(window_s / (cores * hop_s), relative_costs or {})
        self._last_load, self._recorded_s = _LIGHT, -math.inf
        self._neighbours_busy = False

    def set_cost(self, share: float, relative_costs: Mapping[str, float]) -> None:
        """A session of the default model needs ``share`` of what this worker has.

        ``relative_costs``, by model, are multiples of that; models that are not in it cost 1.
        """
        self._measured = int(CPU_SHARE / share)
        self._relative_costs = dict(relative_costs)

    @property
    def _estimate(self) -> int:
        return max(1, min(self.max_sessions, self._measured))

    def record_window(self, took_s: float, media_s: float) -> None:
        """A live window of ``media_s`` was made in ``took_s``, without waiting."""
        # A first window costs more than those that follow, so it counts for little.
        before = _LIGHT if self._load is None else self._load
        self._last_load = before + (took_s / media_s - before) / _SMOOTHING_WINDOWS
        self._recorded_s = self._clock()

    @property
    def _load(self) -> float | None:
        """``None`` when nothing was made of late: silent sessions need nothing."""
        return self._last_load if self._clock() - self._recorded_s < _STALE_S else None

    @property
    def busy(self) -> bool:
        """Whether this worker's live sessions need all of its cores."""
        return self._load is not None and self._load > _BUSY

    def set_neighbours_busy(self, busy: bool) -> None:
        """Whether another worker on the same cores is `busy`."""
        self._neighbours_busy = busy

    @property
    def has_spare(self) -> bool:
        """Whether anything is left over for offline jobs."""
        return not (self.busy or self._neighbours_busy)

    def places_taken(self, models: Iterable[str]) -> int:
        """How many places sessions of these models take."""
        return sum(max(1, round(self._relative_costs.get(model, 1.0))) for model in models)

    def places(self, taken: int) -> int:
        """How many places there are, given how many are taken."""
        load = self._load
        if load is None or taken == 0:
            return self._estimate
        if load > _FULL:
            return min(taken, self._estimate)
        if load < _LIGHT and taken >= self._estimate:
            return min(taken + 1, self.max_sessions)
        return self._estimate
