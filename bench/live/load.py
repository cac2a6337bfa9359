"""Many live sessions at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from bench.live.figures import Load, quantiles, stages_between, summary
from bench.live.service import Service, cpu_seconds, stage_seconds
from bench.live.session import Record, Voice, first_fragment, hold

FPS = 25
PROBES = 8
_APART_S = 0.21  # between the starts of two sessions: no whole part of a window
_SETTLE_S = 1.0


@dataclass(frozen=True)
class Plan:
    """What to ask of ``service``: sessions of ``avatar`` at ``size`` that speak with ``voice``."""

    service: Service
    avatar: str
    size: int
    voice: Voice

    def start(self, **fields: Any) -> dict[str, Any]:
        return {"avatar_id": self.avatar, "size": self.size, **fields}


@dataclass(frozen=True)
class _Look:
    cpu: dict[str, float] | None
    stages: dict[str, tuple[float, float]]


async def first_fragments(plan: Plan) -> dict[str, float]:
    """Seconds to the first fragment of a lone session, sound at hand; the first try warms up."""
    took = [
        await first_fragment(plan.service.url, plan.start(seed=seed), plan.voice)
        for seed in range(PROBES + 1)
    ]
    return quantiles(took[1:], (50, 95)) or {}


async def load(plan: Plan, sessions: int, seconds: float) -> Load:
    """``sessions`` conversations, begun one after another; figures of ``seconds`` with all of them.

    Each sets `idle`, as the studio does: the video continues in real time during silence.
    """
    ramp_s = sessions * _APART_S + _SETTLE_S
    began_s = time.monotonic()
    looks: list[_Look] = []

    async def talk(place: int) -> Record:
        await asyncio.sleep(place * _APART_S)
        speak_s = ramp_s + seconds + _SETTLE_S - place * _APART_S
        start = plan.start(seed=place, idle=True)
        return await hold(plan.service.url, start, plan.voice, seconds=speak_s)

    async def watch() -> None:
        for at_s in (ramp_s, ramp_s + seconds):
            await asyncio.sleep(began_s + at_s - time.monotonic())
            cpu = cpu_seconds(plan.service.pid)
            looks.append(_Look(cpu, await asyncio.to_thread(stage_seconds, plan.service.url)))

    async with asyncio.TaskGroup() as group:
        talks = [group.create_task(talk(place)) for place in range(sessions)]
        group.create_task(watch())
    begin_s = began_s + ramp_s
    before, after = looks
    shares = None
    if before.cpu is not None and after.cpu is not None:
        spent = before.cpu
        shares = {role: (now - spent.get(role, 0.0)) / seconds for role, now in after.cpu.items()}
    stages = stages_between(before.stages, after.stages, seconds)
    records = [t.result() for t in talks]
    return summary(records, begin_s, begin_s + seconds, fps=FPS, cpu=shares, stages=stages)


async def search(plan: Plan, seconds: float, most: int) -> list[Load]:
    """Runs that find the largest number, up to ``most``, that keeps real time.

    Doubles until a number fails, then bisects; `largest` extracts the result.
    """
    runs: list[Load] = []
    good, bad, sessions = 0, most + 1, 1
    while good + 1 < bad:
        runs.append(await load(plan, sessions, seconds))
        if runs[-1].real_time:
            good = sessions
        else:
            bad = sessions
        sessions = min(2 * good, most) if bad > most else (good + bad) // 2
    return runs


def largest(runs: list[Load]) -> int:
    """The largest number of sessions that kept real time; 0 when none did."""
    return max((run.sessions for run in runs if run.real_time), default=0)
