"""From what sessions saw to figures. Pure: times in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from server.bench.client import Record, Seen

# A player that begins this long after the first fragment came must never run dry.
CUSHION_S = 0.16
WINDOW_S, LOOK_AHEAD_S, ALLOWED_S = 0.32, 0.16, 0.15
MIC_TO_FRAGMENT_S = WINDOW_S + LOOK_AHEAD_S + ALLOWED_S
_MISSED_SHARE, _PACE = 0.01, 0.98


@dataclass(frozen=True)
class Playback:
    """How a player would have fared: fragments that came too late, and how long it stood still."""

    fragments: int
    missed: int
    stalled_s: float


@dataclass(frozen=True)
class Stage:
    """What the workers tell of one stage: its mean, and how many threads were in it at a time."""

    mean_s: float
    busy: float


@dataclass(frozen=True)
class Load:
    """One run with ``sessions`` at once; times in seconds, ``None`` where nothing was seen.

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
    """(when it came, how long after it was spoken) of each fragment of speech.

    The clock starts when the first sample of the fragment's sound was spoken, so a window's own
    length and its look-ahead are in it.
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
    """A player that begins `CUSHION_S` after the first fragment, and waits where it runs dry."""
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
    """From two looks at the workers' own sums, ``seconds`` apart; none of what did not happen."""
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
