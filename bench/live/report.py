"""Figures of `fada bench live` as text, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

from bench.live.figures import MIC_TO_FRAGMENT_S, Load

FIRST_FRAGMENT_S = 0.15


def processor() -> str:
    """The processor's name, where ``/proc/cpuinfo`` has it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def as_json(size: int, first: dict[str, float], runs: list[Load], *, largest: int | None) -> str:
    """All of it; times in seconds, processor time in cores."""
    return json.dumps(
        {
            "machine": {
                "processor": processor(),
                "cores": os.cpu_count(),
                "system": platform.system(),
            },
            "size": size,
            "targets_s": {"first_fragment": FIRST_FRAGMENT_S, "mic_to_fragment": MIC_TO_FRAGMENT_S},
            "first_fragment_s": first,
            "largest_real_time": largest,
            "runs": [{**dataclasses.asdict(run), "real_time": run.real_time} for run in runs],
        },
        indent=2,
    )


def first_line(first: dict[str, float]) -> str:
    target = f"target {1e3 * FIRST_FRAGMENT_S:.0f} ms"
    return f"first fragment, alone, sound at hand: {_ms(first)} ({target})"


def lines(run: Load) -> list[str]:
    """One run as text."""
    kept = "keep real time" if run.real_time else "do NOT keep real time"
    text = [
        f"{run.sessions} sessions, {run.seconds:.0f} s: {kept}",
        f"  mic to fragment    {_ms(run.mic_to_fragment_s)} "
        f"(target p95 {1e3 * MIC_TO_FRAGMENT_S:.0f} ms)",
        f"  start to fragment  {_ms(run.start_to_fragment_s)} while the others run",
        f"  missed deadlines   {run.missed} of {run.fragments}, {run.stalled_s:.2f} s stalled",
        f"  video              {run.frames_per_s:.0f} frames/s, {run.pace:.3f} of real time, "
        f"{run.kbit_per_s:.0f} kbit/s a session",
    ]
    if run.refused or run.broken:
        text.append(f"  refused {run.refused}, broken {run.broken}")
    if run.cpu is not None:
        shares = ", ".join(f"{role} {share:.2f}" for role, share in sorted(run.cpu.items()))
        text.append(
            f"  cores              {shares}; the client was late by up to "
            f"{1e3 * run.client_lag_s:.0f} ms"
        )
    if run.stages:
        means = ", ".join(
            f"{name} {1e3 * stage.mean_s:.0f} ms ({stage.busy:.2f})"
            for name, stage in sorted(run.stages.items())
        )
        text.append(f"  stages, mean       {means}; in brackets how many at a time")
    return text


def plot(path: Path, runs: list[Load]) -> None:
    """Latency and processor time over sessions. Raises ``ImportError`` without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ranked = sorted(runs, key=lambda run: run.sessions)
    counts = [run.sessions for run in ranked]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 7), sharex=True)
    for name in ("p50", "p95", "p99"):
        late = [1e3 * (run.mic_to_fragment_s or {}).get(name, float("nan")) for run in ranked]
        above.plot(counts, late, marker="o", label=name)
    above.axhline(1e3 * MIC_TO_FRAGMENT_S, color="grey", linestyle="--", label="target, p95")
    above.set_ylabel("microphone to fragment, ms")
    above.set_yscale("log")
    above.legend()
    roles = sorted({role for run in ranked for role in run.cpu or {}})
    under = [0.0] * len(ranked)
    for role in roles:
        share = [(run.cpu or {}).get(role, 0.0) for run in ranked]
        below.bar(counts, share, bottom=under, label=role)
        under = [a + b for a, b in zip(under, share, strict=True)]
    below.set_ylabel("cores")
    below.set_xlabel("live sessions at once")
    if roles:
        below.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _ms(values: dict[str, Any] | None) -> str:
    if values is None:
        return "none"
    return ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in values.items())
