"""Keeps the worker processes of `fada serve` running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys

from server import process
from server.broker.liveness import deregister, is_live, release_leases, worker_id
from server.broker.redis import BROKER_LOST, Connection

log = logging.getLogger("fada.serve")

_LOOK_S = 0.1
# At least one that goes on when another dies: a new one takes seconds to load. At most what the
# other limits let work: each costs half a gigabyte.
_FEWEST, _MOST = 2, 8
_LONGEST_PAUSE_S = 10.0


def worker_count(asked: int | None, cores: int) -> int:
    """How many workers a machine with so many cores gets, unless it was said."""
    return min(max(cores, _FEWEST), _MOST) if asked is None else asked


class Supervisor:
    """``count`` workers on the broker at ``url``; `watch` runs until cancelled, then `stop`."""

    def __init__(self, connection: Connection, url: str, count: int) -> None:
        self._connection = connection
        self._url = url
        self._count = count
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ever_joined = False

    async def watch(self) -> None:
        """Raises ``RuntimeError`` when no worker has ever become ready and one ends.

        One that dies later is restarted for ever, with longer pauses while it does not come up.
        """
        async with asyncio.TaskGroup() as group:
            for place in range(self._count):
                group.create_task(self._keep(place))

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM to all at once; returns when all are gone."""
        # Counted no more before they are told: else each would hand over to the others.
        with contextlib.suppress(*BROKER_LOST):
            for child in self._running.values():
                await deregister(self._connection, worker_id(child.pid))
        for child in self._running.values():
            child.terminate()
        for child in self._running.values():
            await asyncio.to_thread(process.stop, child, timeout_s)

    async def _keep(self, place: int) -> None:
        deaths = 0
        while True:
            child = process.spawn(
                [sys.executable, "-m", "server.worker"],
                {"FADA_REDIS_URL": self._url, "FADA_WORKERS": str(self._count)},
            )
            self._running[place] = child
            joined = False
            while child.poll() is None:
                await asyncio.sleep(_LOOK_S)
                with contextlib.suppress(*BROKER_LOST):
                    joined = joined or await is_live(self._connection, worker_id(child.pid))
            log.error("worker %d ended with %d", child.pid, child.returncode)
            with contextlib.suppress(*BROKER_LOST):  # its leases end by themselves, too
                await release_leases(self._connection, worker_id(child.pid))
            self._ever_joined = self._ever_joined or joined
            if not self._ever_joined:
                raise RuntimeError(f"a worker ended with {child.returncode} before it was ready")
            deaths = 0 if joined else deaths + 1
            await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.25 * 2**deaths))
