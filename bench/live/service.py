"""A service started for the benchmark, and what its processes cost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STOP_S = 20.0
_READY = "fada is ready on "
_STAGE = re.compile(
    r'^fada_stage_seconds_(?P<kind>sum|count)\{[^}]*stage="(?P<stage>\w+)"[^}]*\} (?P<value>\S+)$',
    re.MULTILINE,
)


@dataclass(frozen=True)
class Service:
    """``url``: ``http://…``; ``pid``: ``None`` for a service that was running already."""

    url: str
    pid: int | None


@contextmanager
def own_service(sessions: int, workers: int) -> Iterator[Service]:
    """Run `fada serve` with ``workers`` and room for ``sessions`` until the block ends.

    Raises ``RuntimeError`` when it ends before it is ready.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "fada.cli", "serve", "--port", "0", "--workers", str(workers)],
        env={**os.environ, "FADA_SESSIONS_PER_WORKER": str(max(8, sessions + 1))},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = child.stdout.readline() if child.stdout else ""
        if not line.startswith(_READY):
            raise RuntimeError(f"fada serve did not start: {line.strip() or 'see above'}")
        yield Service(line.removeprefix(_READY).strip(), child.pid)
    finally:
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stage_seconds(url: str) -> dict[str, tuple[float, float]]:
    """Seconds and count of each stage of all workers so far, by `GET /metrics`."""
    found: dict[str, tuple[float, float]] = {}
    for match in _STAGE.finditer(_metrics(url)):
        name, seconds, count = match["stage"], 0.0, 0.0
        if match["kind"] == "sum":
            seconds = float(match["value"])
        else:
            count = float(match["value"])
        before = found.get(name, (0.0, 0.0))
        found[name] = before[0] + seconds, before[1] + count
    return found


def counted(url: str, name: str) -> float:
    """The counter ``name`` of all processes so far, by `GET /metrics`."""
    lines = re.finditer(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", _metrics(url), re.MULTILINE)
    return sum(float(line[1]) for line in lines)


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
    return text


def cpu_seconds(pid: int | None) -> dict[str, float] | None:
    """Processor time by role of ``pid`` and its descendants, and of this process (``client``).

    ``None`` without ``/proc``, or for a service that was running already.
    """
    if pid is None or not Path("/proc/self/stat").exists():
        return None
    spent: dict[str, float] = {}
    for process in [pid, *_family(pid)]:
        seconds = process_cpu_s(process)
        if seconds is not None:
            role = "api" if process == pid else _role(process)
            spent[role] = spent.get(role, 0.0) + seconds
    spent["client"] = process_cpu_s(os.getpid()) or 0.0
    return spent


def process_cpu_s(pid: int) -> float | None:
    """Processor time of one process; ``None`` when it has ended."""
    fields = _stat(pid)
    return _ticks(fields) if fields else None


def worker_processes(pid: int) -> list[int]:
    """The workers among the children of ``pid``, without their decoders."""
    return [p for p in _family(pid) if int(_stat(p)[1]) == pid and _role(p) == "worker"]


def _ticks(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name; none for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _family(pid: int) -> list[int]:
    parents = {
        int(path.name): int(fields[1])
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and (fields := _stat(int(path.name)))
    }
    found, last = [], {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last}
        found += sorted(last)
    return found


def _role(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended"
    if any(word.startswith(b"server.worker") for word in words):  # or one of its decoders
        return "worker"
    return "broker" if b"valkey" in words[0] or b"redis" in words[0] else "other"
