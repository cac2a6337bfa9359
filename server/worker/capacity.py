"""How many live sessions a worker can hold, by measurement."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from model.audio.log_mel import LOG_MEL
from server.worker.host_load import Cores

HOP_S = LOG_MEL.hop_s
# The share of a core's time that windows may take, for sessions that are admitted at once. The
# broker, the API and snapshots need some; whether more sessions fit is seen while they run.
CPU_SHARE = 0.5
# Load is the time that making a window takes, by its media time. A session makes one window at a
# time: at 1 it falls behind. Above _FULL no session is admitted; above _BUSY offline jobs wait.
_FULL, _BUSY = 0.8, 0.6
_LATE_S = 0.1  # speech that is further behind real time than this has to catch up
_EMPTY_LOAD = 0.25  # before the first window
_SMOOTHING_WINDOWS = 8
_RECENT_S = 2.0
# The share of the machine's cores that stays free: at a higher load windows wait for one another.
_RESERVE = 0.08
_MOST = 0.7  # of a worker's share of the cores
# Load and cores are averages over seconds: what a new session costs shows after this time.
_SETTLE_S = 3.0
_WATCH_S = 8.0  # from then on; the slowest moment of as many seconds counts
_LOWERED_S = 60.0  # how long fewer sessions are admitted once too many were
_EXTRA = 3.0  # times the sessions that are admitted at once: beyond, none


@dataclass(frozen=True)
class Host:
    """This worker's machine: its ``cores``, how much of them is in use, if known, how many live
    ``sessions`` all of its workers hold, whether this worker is the ``next`` to take one more, and
    whether sessions of another one are ``late``."""

    cores: float
    load: Cores | None
    sessions: int
    next: bool
    late: bool = False


class Capacity:
    """Places for live sessions: from a window's cost at first, then by what running ones leave.

    `review` regularly. At once only so many sessions are admitted as surely keep real time. Beyond
    them, one at a time is admitted where those that run have left room for it at every moment of
    some seconds. Where any is late, or too many run, none is admitted, and fewer for some time.
    """

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
        self.max_sessions, self._clock, self._cores = max_sessions, clock, cores
        self.set_cost(window_s / (cores * hop_s), relative_costs or {})
        self._last_load = _EMPTY_LOAD
        self._windows: deque[tuple[float, float]] = deque()  # when each was made, and its length
        self._neighbours_busy = False
        self._host_sessions, self._settled_s = 0, -math.inf
        self._ceiling, self._lowered_s = math.inf, -math.inf
        self._full = self._neighbours_late = False
        self._late_at_s = -math.inf  # when a session last had to catch up
        # Since the last session settled: when, the cores left, and the load.
        self._watched: deque[tuple[float, float, float]] = deque()
        self._extra_at: int | None = None  # the places that must be taken for one more

    def set_cost(self, share: float, relative_costs: Mapping[str, float]) -> None:
        """A session of the default model needs ``share`` of what this worker has.

        ``relative_costs``, by model, are multiples of that; models that are not in it cost 1.
        """
        self._share = share
        self._relative_costs = dict(relative_costs)

    @property
    def estimate(self) -> int:
        """Sessions that are admitted at once."""
        measured = min(self.max_sessions, int(CPU_SHARE / self._share))
        if self._clock() < self._lowered_s:
            measured = min(measured, int(self._ceiling))
        return max(1, measured)

    def record_window(self, took_s: float, media_s: float, *, late_s: float = 0.0) -> None:
        """A live window of ``media_s`` was made in ``took_s``, without waiting.

        Its session's speech then was ``late_s`` behind real time.
        """
        # A first window costs more than those that follow, so it counts for little.
        before = _EMPTY_LOAD if self._load is None else self._load
        self._last_load = before + (took_s / media_s - before) / _SMOOTHING_WINDOWS
        self._windows.append((self._clock(), media_s))
        if self.must_catch_up(late_s):
            self._late_at_s = self._clock()

    @property
    def _load(self) -> float | None:
        """``None`` when nothing was made of late: silent sessions need nothing."""
        while self._windows and self._windows[0][0] < self._clock() - _RECENT_S:
            self._windows.popleft()
        return self._last_load if self._windows else None

    @property
    def _active(self) -> float:
        """How many sessions had windows made of late: those that are silent need none."""
        return sum(media_s for _, media_s in self._windows) / _RECENT_S

    @property
    def busy(self) -> bool:
        """Whether this worker's live sessions need all of its cores."""
        return self._load is not None and self._load > _BUSY

    @property
    def late(self) -> bool:
        """Whether any live session had to catch up in the last seconds."""
        return self._clock() < self._late_at_s + _RECENT_S

    def must_catch_up(self, late_s: float) -> bool:
        """Whether a session that is ``late_s`` behind needs more than the machine has left.

        One whose client stalled catches up by itself, while this worker is not `busy`.
        """
        return late_s > _LATE_S and self.busy

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

    def review(self, taken: int, host: Host) -> None:
        """Learn from how the ``taken`` places and the machine are doing now."""
        now_s, load = self._clock(), self._load
        if host.sessions != self._host_sessions:
            self._host_sessions, self._settled_s = host.sessions, now_s + _SETTLE_S
        self._neighbours_late = host.late
        self._full = load is not None and (self.late or load > _FULL or self._crowds(host))
        self._extra_at = None
        if now_s < self._settled_s or load is None or not taken:
            self._watched.clear()
            return
        if self._full:
            self._ceiling, self._lowered_s = max(1, taken - 1), now_s + _LOWERED_S
            self._settled_s = now_s + _SETTLE_S
        elif host.load is not None:
            self._watched.append((now_s, host.load.left, load))
            while self._watched[0][0] < now_s - _WATCH_S:
                self._watched.popleft()
            if now_s >= max(self._lowered_s, self._settled_s + _WATCH_S) and host.next:
                left = min(left for _, left, _ in self._watched)
                load = max(load for *_, load in self._watched)
                needs = max(self._share * self._cores, host.load.used / taken)
                room = left - needs >= _RESERVE * host.cores
                in_time = load < _BUSY and load * (taken + 1) / taken < _FULL
                speaking = self._active >= 0.8 * taken
                if room and in_time and speaking:
                    self._extra_at = taken

    def _crowds(self, host: Host) -> bool:
        """Whether hardly anything is left of the machine, by this worker's doing.

        Where others use it up, windows are late or they are not.
        """
        cores = host.load
        if cores is None or cores.left > _RESERVE / 2 * host.cores:
            return False
        return cores.used > _MOST * self._cores

    def places(self, taken: int) -> int:
        """How many places there are, given how many are taken."""
        if self._neighbours_late or (taken and self._full):
            return min(taken, self.max_sessions)
        if taken == self._extra_at and self.estimate <= taken < _EXTRA * self.estimate:
            return min(taken + 1, self.max_sessions)
        return max(self.estimate, min(taken, self.max_sessions))
