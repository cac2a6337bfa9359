"""The cost of abuse for a service, and its effect on another client.

    python bench/abuse.py [--url URL] [--doors NAME,...] [--seconds 12] [--only ABUSE ...]

Abuses each door (`bench/doors`) of a service while a live session in another process speaks, and
prints a row for each kind of abuse: the largest gap between two of that session's fragments, to
compare with an undisturbed run, and the growth of the API's, the workers' and the broker's memory,
of open descriptors and of the log, from before the abuse to ten seconds after it. Without an
address, each kind gets a fresh `fada serve` on this machine; with one, only the broker's memory can
be seen. Abusers run at low priority, as they would have machines of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import math
import multiprocessing
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from bench.doors import DOORS, Address, Door
from bench.doors.base import EXAMPLES, Flood, crowd
from bench.live.report import processor
from bench.live.session import Record, Voice, hold

SETTLE_S = 3.0  # of the neighbour's session, before its gaps count
AFTER_S = 10.0
MB = 1 << 20


def invented_methods(at: Address, until_s: float) -> None:
    """Requests with random unknown methods."""
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), at.dial() as sock:
            for _ in range(50):
                method = "X" + secrets.token_hex(1000)
                sock.sendall(at.request(method, "/models", {}))
                sock.recv(65536)


def silent_connections(at: Address, until_s: float) -> None:
    crowd(at, until_s, b"")


def unfinished_headers(at: Address, until_s: float) -> None:
    crowd(at, until_s, at.request("GET", "/", {}).removesuffix(b"\r\n") + b"X: ", drip=b"a")


def unfinished_requests(at: Address, until_s: float, *, door: Door) -> None:
    crowd(at, until_s, door.half(at), drip=b"a")


def readers_that_do_not_read(at: Address, until_s: float, *, door: Door) -> None:
    """Whole requests whose answers are never read."""
    crowd(at, until_s, door.whole(at), most=20)


def broken_files(at: Address, until_s: float, *, door: Door) -> None:
    """Files with random bytes changed, one request after the other."""
    names = itertools.cycle(door.media)
    while time.monotonic() < until_s:
        name = next(names)
        changed = bytearray(door.media[name])
        for _ in range(50):
            changed[secrets.randbelow(200)] = secrets.randbelow(256)
        door.ask(at, {name: bytes(changed)})


def floods_of(doors: Mapping[str, Door]) -> dict[str, Flood]:
    """Every kind of abuse, by the name in the table."""
    floods: dict[str, Flood] = {
        flood.__name__.replace("_", " "): flood
        for flood in (invented_methods, silent_connections, unfinished_headers)
    }
    for door in doors.values():
        for each in (unfinished_requests, readers_that_do_not_read, broken_files):
            floods[f"{door.name}: {each.__name__.replace('_', ' ')}"] = partial(each, door=door)
        floods |= {f"{door.name}: {name}": flood for name, flood in door.floods.items()}
    return floods


@dataclass(frozen=True)
class Cost:
    """Resources of a service at one moment; NaN where they cannot be seen from here."""

    api_mb: float
    workers_mb: float
    descriptors: float
    broker_mb: float
    log_mb: float


@dataclass(frozen=True)
class Served:
    """A service; ``process`` and ``log`` of one that was started here."""

    at: Address
    process: psutil.Process | None = None
    log: Path | None = None

    def cost(self) -> Cost:
        request = urllib.request.Request(f"{self.at.url}/metrics", headers=dict(self.at.headers))
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        (broker,) = [n.split()[1] for n in lines if n.startswith("fada_broker_memory_bytes ")]
        if self.process is None or self.log is None:
            return Cost(math.nan, math.nan, math.nan, float(broker) / MB, math.nan)
        below = self.process.children(recursive=True)
        workers = [one for one in below if "worker" in " ".join(one.cmdline())]
        return Cost(
            self.process.memory_info().rss / MB,
            sum(one.memory_info().rss for one in workers) / MB,
            self.process.num_fds(),
            float(broker) / MB,
            self.log.stat().st_size / MB,
        )


@contextmanager
def serving() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "fada.cli", "serve", "--port", "0"],
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            line = child.stdout.readline() if child.stdout else ""
            if "ready on" not in line:
                raise RuntimeError(f"fada serve did not start: {log.read_text()[-500:]}")
            yield Served(Address(line.split()[-1]), psutil.Process(child.pid), log)
        finally:
            child.terminate()
            child.wait(30)


def largest_gap_ms(record: Record) -> float:
    times = [seen.at_s for seen in record.fragments]
    if record.trouble or len(times) < 2 or record.ready_s is None:
        return float("nan")
    settled = [at_s for at_s in times if at_s - record.ready_s > SETTLE_S]
    return 1000 * max(b - a for a, b in itertools.pairwise(settled))


def abuse(name: str, at: Address, seconds: float) -> None:
    os.nice(15)
    floods_of(DOORS)[name](at, time.monotonic() + seconds)


async def run(served: Served, flood: str | None, seconds: float) -> tuple[float, Cost, Cost]:
    """The other client's largest gap, and the costs before and after."""
    voice = Voice.read(EXAMPLES / "speech.wav")
    portrait = base64.b64encode((EXAMPLES / "presenter.jpg").read_bytes()).decode()
    start = {"portrait": portrait, "idle": True, "size": 512}
    speak = partial(hold, served.at.url, start, voice, headers=served.at.headers)
    await speak(seconds=2.0)  # warms up
    before = await asyncio.to_thread(served.cost)
    talk = asyncio.create_task(speak(seconds=SETTLE_S + seconds))
    await asyncio.sleep(SETTLE_S)
    if flood is not None:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=abuse, args=(flood, served.at, seconds - 1.0))
        process.start()
        await asyncio.to_thread(process.join, seconds + 30)
        process.kill()
    record = await talk
    await asyncio.sleep(AFTER_S)
    after = await asyncio.to_thread(served.cost)
    return largest_gap_ms(record), before, after


def row(name: str, gap_ms: float, before: Cost, after: Cost) -> str:
    """A line of the table."""
    cells = [name, f"{gap_ms:.0f}"]
    for field in ("api_mb", "workers_mb", "descriptors", "broker_mb", "log_mb"):
        grown = getattr(after, field) - getattr(before, field)
        digits = 0 if field == "descriptors" else 1
        cells.append("" if math.isnan(grown) else f"{grown:+.{digits}f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running service; by default one is started for each kind")
    parser.add_argument("--api-key", help="a key of the service at --url")
    parser.add_argument("--doors", default=",".join(DOORS), help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each kind [%(default)s]")
    parser.add_argument("--only", nargs="+", metavar="ABUSE", help="as named in the table")
    args = parser.parse_args()
    unknown = set(args.doors.split(",")) - set(DOORS)
    if unknown:
        parser.error(f"--doors = {min(unknown)}, expected some of {', '.join(DOORS)}")
    floods = list(floods_of({name: DOORS[name] for name in args.doors.split(",")}))
    for name in args.only or []:
        if name not in floods:
            parser.error(f"--only = {name!r}, expected some of {', '.join(floods)}")
    print(f"{processor()}; {args.seconds:g} s of each\n")
    print(
        "| abuse | largest gap, ms | API, MB | workers, MB | descriptors | broker, MB | log, MB |"
    )
    print("| --- |" + " ---: |" * 6)
    key = {"X-API-Key": args.api_key} if args.api_key else {}
    for name in [None, *(args.only or floods)]:
        remote = contextlib.nullcontext(Served(Address(args.url, key))) if args.url else serving()
        with remote as served:
            print(row(name or "none", *asyncio.run(run(served, name, args.seconds))), flush=True)


if __name__ == "__main__":
    main()
