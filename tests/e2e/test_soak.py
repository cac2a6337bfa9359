"""Half an hour of sessions that come and go, in every way they can: nothing piles up.

`FADA_SOAK_MINUTES` makes it shorter or longer.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.server.media_files import sound
from tests.server.service import ROOT, Service, running
from tests.server.stream_client import pcm, stream_to

PORTRAIT = (ROOT / "docs/examples/presenter.jpg").read_bytes()
MINUTES = float(os.environ.get("FADA_SOAK_MINUTES", "30"))
TALKERS = 3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass(frozen=True)
class Footprint:
    """Of the service and all that it started."""

    megabytes: float
    handles: int
    threads: int

    @classmethod
    def of(cls, service: Service) -> Footprint:
        resident = handles = threads = 0
        for process_id in (service.process.pid, *service.children()):
            place = Path(f"/proc/{process_id}")
            resident += int((place / "statm").read_text().split()[1])
            handles += len(list((place / "fd").iterdir()))
            threads += len(list((place / "task").iterdir()))
        return cls(resident * os.sysconf("SC_PAGE_SIZE") / 2**20, handles, threads)


def visit(service: Service, turn: int) -> None:
    """One visitor: who finishes, interrupts, leaves without a word, idles, or wants a file."""
    kind = turn % 5
    if kind == 4:
        files = {"portrait": PORTRAIT, "audio": sound(seconds=2.0)}
        with service.client() as client:
            answer = client.post("/animate", files=files, data={"size": "128"})
        assert answer.status_code in (200, 429), answer.text
        return
    with stream_to(service.url) as stream:
        stream.start(PORTRAIT, idle=kind == 3, seed=turn)
        stream.until("ready")
        stream.speak(pcm(1.5))
        for _ in range(4):
            stream.until("fragment")
        if kind == 1:
            stream.tell("interrupt")
            stream.until("interrupted")
        if kind != 2:
            stream.finish()


@pytest.mark.slow
def test_churning_sessions_leave_nothing_behind() -> None:
    failures: list[BaseException] = []
    over = threading.Event()
    visits = [0] * TALKERS

    def keep_visiting(service: Service, number: int) -> None:
        while not over.is_set():
            try:
                visit(service, number + visits[number])
            except BaseException as error:  # for the test's own thread to show
                failures.append(error)
                return
            visits[number] += 1

    with running({}) as service:
        threads = [
            threading.Thread(target=keep_visiting, args=(service, n)) for n in range(TALKERS)
        ]
        for thread in threads:
            thread.start()
        seen: list[Footprint] = []
        end_s = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end_s and not failures:
            over.wait(60 * MINUTES / 40)
            seen.append(Footprint.of(service))
        over.set()
        for thread in threads:
            thread.join()
        log = service.log.read_text()
    assert not failures, (failures, log)
    assert min(visits) > MINUTES, visits
    print(f"{sum(visits)} visits, {seen[0]} at first, {seen[len(seen) // 2]} half-way, {seen[-1]}")
    # caches fill in the first half; from then on the middle of a quarter's looks may not rise
    third, last = seen[len(seen) // 2 : 3 * len(seen) // 4], seen[3 * len(seen) // 4 :]
    for name, slack in (("megabytes", 15.0), ("handles", 8.0), ("threads", 4.0)):
        before, after = (np.median([getattr(f, name) for f in part]) for part in (third, last))
        assert after <= before + slack, (name, before, after, seen)
