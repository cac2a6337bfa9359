"""Keeps the worker processes of `fada serve` running.

Knows: starting, watching, burying and restarting them. Does not know what a job is; a job whose
worker died ends with an error to its client (`server.broker.liveness`).
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time

from server import process
from server.broker.liveness import bury, worker_id
from server.broker.redis import Connection

log = logging.getLogger("fada.serve")

_LOOK_S = 0.2
_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 10.0
_GIVE_UP_AFTER = 3


class Supervisor:
    """``count`` workers on the broker at ``url``; `watch` runs until cancelled, then `stop`."""

    def __init__(self, connection: Connection, url: str, count: int) -> None:
        self._connection = connection
        self._url = url
        self._count = count
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    async def watch(self) -> None:
        """Raises ``RuntimeError`` when a worker dies young several times in a row."""
        async with asyncio.TaskGroup() as group:
            for place in range(self._count):
                group.create_task(self._keep(place))

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM to all at once; returns when all are gone."""
        for child in self._running.values():
            child.terminate()
        for child in self._running.values():
            await asyncio.to_thread(process.stop, child, timeout_s)

    async def _keep(self, place: int) -> None:
        young_deaths = 0
        while True:
            born_s = time.monotonic()
            child = process.spawn(
                [sys.executable, "-m", "server.cli", "worker"], {"FADA_REDIS_URL": self._url}
            )
            self._running[place] = child
            while child.poll() is None:
                await asyncio.sleep(_LOOK_S)
            log.error("worker %d ended with %d", child.pid, child.returncode)
            await bury(self._connection, worker_id(child.pid))
            lived_s = time.monotonic() - born_s
            young_deaths = young_deaths + 1 if lived_s < _SHORT_LIFE_S else 0
            if young_deaths >= _GIVE_UP_AFTER:
                raise RuntimeError(f"a worker died {young_deaths} times, each within seconds")
            await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.25 * 2**young_deaths))
