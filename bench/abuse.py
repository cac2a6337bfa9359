"""The cost of abuse for a service, and its effect on another client.

    python bench/abuse.py [--seconds 12] [--only NAME ...]

Each kind of abuse gets a fresh `fada serve` on this machine, without keys, while a live session in
another process speaks. Prints a row for each: the largest gap between two of that session's
fragments, to compare with an undisturbed run, and the growth of the API's, the workers' and the
broker's memory, of open descriptors and of the log, from before the abuse to ten seconds after it.
Abusers run at low priority, as they would have machines of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from websockets.sync.client import connect

from bench.live.report import processor
from bench.live.session import Record, Voice, hold

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
ADDRESS = ("127.0.0.1", 0)
SETTLE_S = 3.0  # of the neighbour's session, before its gaps count
AFTER_S = 10.0
MB = 1 << 20
Flood = Callable[[str, float], None]  # the service's address, until when (monotonic)


def dial(url: str, words: bytes = b"") -> socket.socket:
    place = urlsplit(url)
    sock = socket.create_connection((place.hostname or "", place.port or 80), timeout=5)
    with contextlib.suppress(OSError):
        sock.sendall(words)
    return sock


def crowd(url: str, until_s: float, words: bytes, *, drip: bytes = b"", most: int = 2000) -> None:
    """Open connections that send ``words`` and then nothing, or ``drip`` every half second."""
    held: list[socket.socket] = []
    try:
        while time.monotonic() < until_s:
            for _ in range(min(100, most - len(held))):
                with contextlib.suppress(OSError):
                    held.append(dial(url, words))
            for sock in held if drip else []:
                with contextlib.suppress(OSError):
                    sock.send(drip)
            time.sleep(0.5)
    finally:
        for sock in held:
            sock.close()


def invented_methods(url: str, until_s: float) -> None:
    """Requests with random unknown methods."""
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), dial(url) as sock:
            for _ in range(50):
                method = b"X" + secrets.token_hex(1000).encode()
                sock.sendall(method + b" /models HTTP/1.1\r\nHost: localhost\r\n\r\n")
                sock.recv(65536)


def silent(url: str, until_s: float) -> None:
    crowd(url, until_s, b"")


def unfinished_headers(url: str, until_s: float) -> None:
    crowd(url, until_s, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", drip=b"a")


def unfinished_bodies(url: str, until_s: float) -> None:
    head = b"POST /animate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    crowd(
        url,
        until_s,
        head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n",
        drip=b"a",
    )


def refused_uploads_that_stall(url: str, until_s: float) -> None:
    head = b"POST /animate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n"
    crowd(url, until_s, head + bytes(1000))


def starts_that_never_come(url: str, until_s: float) -> None:
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    head = b"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    crowd(url, until_s, head + b"Connection: Upgrade\r\n" + key + b"\r\n")


def sessions(url: str, until_s: float, talk: Callable[[object], None]) -> None:
    """Live sessions in sequence; ``talk`` runs in each until it is closed."""
    portrait = base64_portrait()
    while time.monotonic() < until_s:
        with contextlib.suppress(Exception):
            place = url.replace("http", "ws", 1) + "/stream"
            with connect(place, max_size=None, compression=None) as sock:
                sock.send(json.dumps({"type": "start", "portrait": portrait, "sample_rate": 48000}))
                while "ready" not in str(sock.recv(10)):
                    pass
                talk(sock)
        time.sleep(0.1)


def base64_portrait() -> str:
    import base64

    return base64.b64encode((EXAMPLES / "presenter.jpg").read_bytes()).decode()


def sound_and_interrupts(url: str, until_s: float) -> None:
    """As much sound as may be queued, dropped by an interrupt, repeatedly."""

    def talk(sock: object) -> None:
        while time.monotonic() < until_s:
            sock.send(bytes(50 * 2 * 48_000))  # type: ignore[attr-defined]
            sock.send('{"type": "interrupt"}')  # type: ignore[attr-defined]

    sessions(url, until_s, talk)


def large_updates(url: str, until_s: float) -> None:
    """Updates of 5 MiB of JSON."""
    text = json.dumps({"type": "update", "steps": 2, "x": list(range(700_000))})

    def talk(sock: object) -> None:
        while time.monotonic() < until_s:
            sock.send(text)  # type: ignore[attr-defined]
            time.sleep(0.05)

    sessions(url, until_s, talk)


def unfinished_messages(url: str, until_s: float) -> None:
    """Ten WebSocket messages of 30 MiB that never end."""
    place = url.replace("http", "ws", 1) + "/stream"
    while time.monotonic() < until_s:
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                with contextlib.suppress(Exception):
                    raw = stack.enter_context(connect(place, max_size=None)).socket
                    raw.sendall(b"\x02\xff" + (30 * MB).to_bytes(8, "big") + bytes(4))
                    raw.sendall(bytes(29 * MB))
            time.sleep(1.0)


def readers_that_do_not_read(url: str, until_s: float) -> None:
    """Requests for videos whose answers are never read."""
    form = b""
    for name, path in (("portrait", "presenter.jpg"), ("audio", "speech.wav")):
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
        form += head.encode() + (EXAMPLES / path).read_bytes() + b"\r\n"
    form += b"--b--\r\n"
    head = f"POST /animate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(form)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    crowd(url, until_s, head.encode() + form, most=20)


def broken_files(url: str, until_s: float) -> None:
    """Audio files with random bytes changed."""
    good = (EXAMPLES / "speech.wav").read_bytes()
    portrait = (EXAMPLES / "presenter.jpg").read_bytes()
    while time.monotonic() < until_s:
        changed = bytearray(good[: 1 << 16])
        for _ in range(50):
            changed[secrets.randbelow(200)] = secrets.randbelow(256)
        parts = (("portrait", portrait), ("audio", bytes(changed)))
        body = b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
            + blob + b"\r\n" for name, blob in parts
        ) + b"--b--\r\n"  # fmt: skip
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        with contextlib.suppress(OSError):
            urllib.request.urlopen(
                urllib.request.Request(f"{url}/animate", body, kind), timeout=20
            ).read()


FLOODS: dict[str, Flood] = {
    flood.__name__.replace("_", " "): flood
    for flood in (
        invented_methods, silent, unfinished_headers, unfinished_bodies,
        refused_uploads_that_stall, starts_that_never_come, sound_and_interrupts, large_updates,
        unfinished_messages, readers_that_do_not_read, broken_files,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Resources of a service at one moment."""

    api_mb: float
    workers_mb: float
    descriptors: int
    broker_mb: float
    log_mb: float


@dataclass(frozen=True)
class Served:
    url: str
    process: psutil.Process
    log: Path

    def cost(self) -> Cost:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        (broker,) = [n.split()[1] for n in lines if n.startswith("fada_broker_memory_bytes ")]
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
            yield Served(line.split()[-1], psutil.Process(child.pid), log)
        finally:
            child.terminate()
            child.wait(30)


def largest_gap_ms(record: Record) -> float:
    times = [seen.at_s for seen in record.fragments]
    if record.trouble or len(times) < 2 or record.ready_s is None:
        return float("nan")
    settled = [at_s for at_s in times if at_s - record.ready_s > SETTLE_S]
    return 1000 * max(b - a for a, b in itertools.pairwise(settled))


def abuse(name: str, url: str, seconds: float) -> None:
    os.nice(15)
    FLOODS[name](url, time.monotonic() + seconds)


async def run(flood: str | None, seconds: float) -> tuple[float, Cost, Cost]:
    """The other client's largest gap, and the costs before and after."""
    voice = Voice.read(EXAMPLES / "speech.wav")
    start = {"portrait": base64_portrait(), "idle": True, "size": 512}
    with serving() as served:
        await hold(served.url, start, voice, seconds=2.0)  # warms up
        before = await asyncio.to_thread(served.cost)
        talk = asyncio.create_task(hold(served.url, start, voice, seconds=SETTLE_S + seconds))
        await asyncio.sleep(SETTLE_S)
        if flood is not None:
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=abuse, args=(flood, served.url, seconds - 1.0))
            process.start()
            await asyncio.to_thread(process.join, seconds + 30)
            process.kill()
        record = await talk
        await asyncio.sleep(AFTER_S)
        after = await asyncio.to_thread(served.cost)
    return largest_gap_ms(record), before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="[%(default)s]")
    parser.add_argument("--only", nargs="+", choices=sorted(FLOODS), default=list(FLOODS))
    args = parser.parse_args()
    print(f"{processor()}; {args.seconds:g} s of each\n")
    print(
        "| abuse | largest gap, ms | API, MB | workers, MB | descriptors | broker, MB | log, MB |"
    )
    print("| --- |" + " ---: |" * 6)
    for name in [None, *args.only]:
        gap, before, after = asyncio.run(run(name, args.seconds))
        grown = [
            f"{getattr(after, f) - getattr(before, f):+.{0 if f == 'descriptors' else 1}f}"
            for f in ("api_mb", "workers_mb", "descriptors", "broker_mb", "log_mb")
        ]
        print(f"| {name or 'none'} | {gap:.0f} | " + " | ".join(grown) + " |", flush=True)


if __name__ == "__main__":
    main()
