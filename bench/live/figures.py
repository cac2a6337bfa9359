"""From sessions' records to figures; no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.live.session import Record, Seen

# A player that starts this long after the first fragment arrived must never run dry.
CUSHION_S = 0.16
WINDOW_S, LOOK_AHEAD_S, ALLOWED_S = 0.32, 0.16, 0.15
MIC_TO_FRAGMENT_S = WINDOW_S + LOOK_AHEAD_S + ALLOWED_S
_MISSED_SHARE, _PACE = 0.01, 0.98


@dataclass(frozen=True)
class Playback:
    """What a player would have seen: late fragments, and seconds that it stalled."""

    fragments: int
    missed: int
    stalled_s: float


@dataclass(frozen=True)
class Stage:
    """One stage of the workers: its mean duration, and how many threads were in it on average."""

    mean_s: float
    busy: float


@dataclass(frozen=True)
class Load:
    """One run with ``sessions`` at once; times in seconds, ``None`` without a measurement.

    ``pace`` is the video made over the time it took: 1 is real time. ``cpu`` is in cores.
    """

    sessions: int
    seconds: float
    refused: int
    broken: int
    frames_per_s: float
    pace: float
    start_to_fragment_s: dict[str, float] | None
    mic_to_fragment_s: dict[str, float] | None
    fragments: int
    missed: int
    stalled_s: float
    kbit_per_s: float
    client_lag_s: float
    cpu: dict[str, float] | None
    stages: dict[str, Stage]

    @property
    def real_time(self) -> bool:
        """Whether every session kept real time."""
        late = self.mic_to_fragment_s
        return (
            not self.refused
            and not self.broken
            and self.pace >= _PACE
            and self.missed <= _MISSED_SHARE * self.fragments
            and late is not None
            and late["p95"] <= MIC_TO_FRAGMENT_S
        )


def quantiles(values: Iterable[float], shares: Sequence[int]) -> dict[str, float] | None:
    """Nearest-rank percentiles by name (``p95``), or ``None`` of nothing."""
    ranked = sorted(values)
    if not ranked:
        return None
    return {f"p{q}": ranked[max(0, math.ceil(q / 100 * len(ranked)) - 1)] for q in shares}


def mic_to_fragment(record: Record) -> list[tuple[float, float]]:
    """(time of receipt, latency) of each fragment of speech.

    Latency counts from the first sample of the fragment's sound, so it includes the window's own
    length and its look-ahead.
    """
    if record.spoke_s is None:
        return []
    made, at_s = [], record.spoke_s
    for fragment in record.fragments:
        if fragment.speech:
            made.append((fragment.at_s, fragment.at_s - at_s))
            at_s += fragment.duration_s
    return made


def playback(fragments: Sequence[Seen]) -> Playback:
    """A player that starts `CUSHION_S` after the first fragment and stalls when it runs dry."""
    if not fragments:
        return Playback(0, 0, 0.0)
    zero_s = fragments[0].at_s + CUSHION_S - fragments[0].start_s
    missed, stalled_s = 0, 0.0
    for fragment in fragments:
        late_s = fragment.at_s - (zero_s + fragment.start_s)
        if late_s > 0:
            missed, stalled_s, zero_s = missed + 1, stalled_s + late_s, zero_s + late_s
    return Playback(len(fragments), missed, stalled_s)


def unbroken(fragments: Sequence[Seen]) -> bool:
    """Whether each fragment begins where the one before ends."""
    return all(
        math.isclose(a.start_s + a.duration_s, b.start_s, abs_tol=1e-6)
        for a, b in pairwise(fragments)
    )


def stages_between(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]], seconds: float
) -> dict[str, Stage]:
    """The difference of two readings of the workers' sums, ``seconds`` apart; no idle stages."""
    made = {}
    for name, (total_s, count) in after.items():
        earlier_s, earlier = before.get(name, (0.0, 0.0))
        if count > earlier:
            spent_s = total_s - earlier_s
            made[name] = Stage(spent_s / (count - earlier), spent_s / seconds)
    return made


def summary(
    records: Sequence[Record],
    begin_s: float,
    end_s: float,
    *,
    fps: int,
    cpu: dict[str, float] | None = None,
    stages: dict[str, Stage] | None = None,
) -> Load:
    """The figures of the time from ``begin_s`` to ``end_s``, in which all sessions ran."""
    seconds = end_s - begin_s
    within = [[f for f in r.fragments if begin_s <= f.at_s < end_s] for r in records]
    media_s = sum(f.duration_s for some in within for f in some)
    plays = [playback(some) for some in within]
    running = [r for r in records if r.ready_s is not None]
    return Load(
        sessions=len(records),
        seconds=seconds,
        refused=sum(r.ready_s is None for r in records),
        broken=sum(r.trouble is not None or not unbroken(r.fragments) for r in running),
        frames_per_s=media_s * fps / seconds,
        pace=media_s / (seconds * max(1, len(running))),
        start_to_fragment_s=quantiles(
            (r.fragments[0].at_s - r.asked_s for r in records if r.fragments), (50, 95)
        ),
        mic_to_fragment_s=quantiles(
            (
                late_s
                for r in records
                for at_s, late_s in mic_to_fragment(r)
                if begin_s <= at_s < end_s
            ),
            (50, 95, 99),
        ),
        fragments=sum(p.fragments for p in plays),
        missed=sum(p.missed for p in plays),
        stalled_s=sum(p.stalled_s for p in plays),
        kbit_per_s=sum(f.size for some in within for f in some)
        * 8e-3
        / (seconds * max(1, len(running))),
        client_lag_s=max(r.lag_s for r in records),
        cpu=cpu,
        stages=stages or {},
    )
