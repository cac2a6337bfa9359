"""Half an hour of sessions that begin and end in every way: nothing accumulates.

What is judged is the trend after the first half, in which caches fill: the median slope between
any two looks, times the half's length, so that neither a peak nor a session more at one look
decides. Speed is not judged: on a slow or busy machine fewer visitors come, and then it goes on
longer, until enough have been there.

`FADA_SOAK_MINUTES` makes it shorter or longer.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.server.media_files import sound
from tests.server.service import ROOT, Service, running
from tests.server.stream_client import Stream, pcm, stream_to

PORTRAIT = (ROOT / "docs/examples/presenter.jpg").read_bytes()
MINUTES = float(os.environ.get("FADA_SOAK_MINUTES", "30"))
TALKERS = 3
LOOKS = 60
FEWEST = 5  # visits of each kind in each half
LONGEST = 3  # times the minutes, until so many have been there
PATIENCE_S = 300.0
REFUSED = {"busy", "no_worker"}
AGAIN_S = 1.0
# What the second half may add to some 1,200 MB, and to all that is open.
SLACK = {"megabytes": 20.0, "handles": 8.0, "threads": 4.0}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass(frozen=True)
class Footprint:
    """Of the service and all that it started, so many seconds after the first look."""

    at_s: float
    megabytes: float
    handles: int
    threads: int

    @classmethod
    def of(cls, service: Service, at_s: float) -> Footprint:
        resident = handles = threads = 0
        for process_id in (service.process.pid, *service.children()):
            place = Path(f"/proc/{process_id}")
            resident += int((place / "statm").read_text().split()[1])
            handles += len(list((place / "fd").iterdir()))
            threads += len(list((place / "task").iterdir()))
        return cls(at_s, resident * os.sysconf("SC_PAGE_SIZE") / 2**20, handles, threads)


def growth(seen: list[Footprint], what: str) -> float:
    """From the first to the last look, by the median slope between any two (Theil and Sen)."""
    pairs = itertools.combinations([(f.at_s, float(getattr(f, what))) for f in seen], 2)
    slope = statistics.median((b - a) / (t - s) for (s, a), (t, b) in pairs)
    return slope * (seen[-1].at_s - seen[0].at_s)


class Refused(Exception):
    """There was no free place, which is a valid answer."""


def finishes(stream: Stream) -> None:
    stream.finish()


def interrupts(stream: Stream) -> None:
    stream.send("interrupt")
    stream.until("interrupted")
    stream.finish()


def vanishes(stream: Stream) -> None:
    stream.socket.socket.shutdown(2)


def talks(service: Service, then: Callable[[Stream], None], *, idle: bool, seed: int) -> None:
    with stream_to(service.url, timeout_s=PATIENCE_S) as stream:
        try:
            stream.start(PORTRAIT, idle=idle, seed=seed)
            stream.until("ready")
            stream.send_audio(pcm(1.5))
            for _ in range(4):
                stream.until("fragment")
            then(stream)
        except ConnectionClosed as closed:
            if stream.texts and stream.texts[-1].get("code") in REFUSED:
                raise Refused from closed
            raise AssertionError(stream.texts[-2:]) from closed


def orders(service: Service) -> None:
    files = {"portrait": PORTRAIT, "audio": sound(seconds=2.0)}
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        answer = client.post("/animate", files=files, data={"size": "128"})
    if answer.status_code != 200:
        if answer.json()["code"] in REFUSED:
            raise Refused
        raise AssertionError(answer.text)


VISITS: dict[str, Callable[[Service, int], None]] = {
    "finishes": lambda service, n: talks(service, finishes, idle=False, seed=n),
    "interrupts": lambda service, n: talks(service, interrupts, idle=False, seed=n),
    "vanishes": lambda service, n: talks(service, vanishes, idle=False, seed=n),
    "rests": lambda service, n: talks(service, finishes, idle=True, seed=n),
    "orders": lambda service, n: orders(service),
}


@dataclass
class Crowd:
    """Visitors, several at once, for as long as the block of `visiting` runs."""

    service: Service
    came: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    failures: list[BaseException] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def visit(self, first: int) -> None:
        for number in itertools.count(first):
            kind = list(VISITS)[number % len(VISITS)]
            try:
                VISITS[kind](self.service, number)
                with self.lock:
                    self.came[kind] += 1
            except Refused:
                with self.lock:
                    self.refused += 1
                self.over.wait(AGAIN_S)
            except BaseException as error:  # for the test's own thread to show
                self.failures.append(error)
                self.over.set()
            if self.over.is_set():
                return

    def enough(self, times: int) -> bool:
        return all(self.came[kind] >= times * FEWEST for kind in VISITS)


@contextmanager
def visiting(service: Service) -> Iterator[Crowd]:
    crowd = Crowd(service)
    threads = [threading.Thread(target=crowd.visit, args=(n,)) for n in range(TALKERS)]
    for thread in threads:
        thread.start()
    try:
        yield crowd
    finally:
        crowd.over.set()
        for thread in threads:
            thread.join()


def looks(crowd: Crowd, half: int) -> list[Footprint]:
    """Over half of the time, or longer, until enough have visited."""
    seen: list[Footprint] = []
    began_s = time.monotonic()
    while not crowd.over.wait(60 * MINUTES / LOOKS):
        at_s = time.monotonic() - began_s
        seen.append(Footprint.of(crowd.service, at_s))
        print(json.dumps({**asdict(seen[-1]), "came": sum(crowd.came.values())}), flush=True)
        if at_s >= 30 * MINUTES and crowd.enough(half):
            break
        assert at_s < LONGEST * 60 * MINUTES, f"too few visits to judge: {crowd.came}"
    return seen


def left_in_the_broker(service: Service) -> float:
    """Jobs queued or running, by the service's own count."""
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("fada_queue_jobs{"))


@pytest.mark.slow
def test_resources_stay_flat_while_sessions_come_and_go() -> None:
    with running({}) as service:
        workers = service.workers()
        with visiting(service) as crowd:
            first, second = looks(crowd, 1), looks(crowd, 2)
        assert not crowd.failures, (crowd.failures, service.log.read_text()[-5000:])
        assert service.workers() == workers  # no worker died and freed what it had accumulated
        give_up_s = time.monotonic() + PATIENCE_S
        while left := left_in_the_broker(service):
            assert time.monotonic() < give_up_s, f"{left} jobs are left"
            time.sleep(AGAIN_S)
    grew = {what: round(growth(second, what), 1) for what in SLACK}
    ends = {"first": first[0], "half": second[0], "last": second[-1]}
    figures = {
        "minutes": round((first[-1].at_s + second[-1].at_s) / 60, 1),
        "visits": dict(crowd.came),
        "refused": crowd.refused,
        "grew": grew,
        **{name: asdict(footprint) for name, footprint in ends.items()},
    }
    print(json.dumps(figures))
    for what, slack in SLACK.items():
        assert grew[what] <= slack, (what, grew, second)
