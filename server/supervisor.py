"""Keeps the worker processes of `fada serve` running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from server import process
from server.broker.liveness import (
    announce_start,
    deregister,
    is_live,
    release_leases,
    worker_id,
)
from server.broker.redis import BROKER_LOST, Connection

log = logging.getLogger("fada.serve")

_POLL_S = 0.1
# Two, so that one survives when the other dies: a new one takes seconds to load. At most eight, for
# each costs half a gigabyte.
_MIN_WORKERS, _MAX_WORKERS = 2, 8
_MAX_BACKOFF_S = 10.0


def worker_count(setting: int | None, cores: int, gpus: int = 0) -> int:
    """The number of workers to run: the setting, or one for each GPU, which draws on all cores, or
    one for each core, 2 to 8."""
    return setting or gpus or min(max(cores, _MIN_WORKERS), _MAX_WORKERS)


class Supervisor:
    """Runs ``count`` workers on the broker at ``url``: `watch` until cancelled, then `stop`.

    They take ``devices``, names of GPUs, in turn, and share the folder ``data``.
    """

    def __init__(
        self,
        connection: Connection,
        url: str,
        count: int,
        *,
        devices: Sequence[str] = (),
        data: Path | None = None,
    ) -> None:
        self._connection, self._data = connection, data
        self._url = url
        self._count, self._devices = count, devices
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ever_joined = False

    async def watch(self) -> None:
        """Restart workers that die, with exponential backoff while they do not become ready.

        Raises ``RuntimeError`` if one dies before any worker has ever become ready.
        """
        async with asyncio.TaskGroup() as group:
            for slot in range(self._count):
                group.create_task(self._keep_running(slot))

    async def stop(self, timeout_s: float) -> None:
        """Send SIGTERM to all workers at once; return when all have exited.

        A worker that is still running after ``timeout_s`` seconds is killed.
        """
        # Deregister all before the signals, or each would hand its jobs over to the others.
        with contextlib.suppress(*BROKER_LOST):
            for child in self._running.values():
                await deregister(self._connection, worker_id(child.pid))
        for child in self._running.values():
            child.terminate()
        for child in self._running.values():
            await asyncio.to_thread(process.stop, child, timeout_s)

    async def _keep_running(self, slot: int) -> None:
        failures = 0
        while True:
            settings = {"FADA_REDIS_URL": self._url, "FADA_WORKERS": str(self._count)}
            if self._data is not None:
                settings["FADA_DATA"] = str(self._data)
            if self._devices:
                settings["FADA_DEVICES"] = self._devices[slot % len(self._devices)]
            child = process.spawn([sys.executable, "-m", "server.worker"], settings)
            self._running[slot] = child
            joined = False
            with contextlib.suppress(*BROKER_LOST):
                await announce_start(self._connection, worker_id(child.pid))
            while child.poll() is None:
                await asyncio.sleep(_POLL_S)
                with contextlib.suppress(*BROKER_LOST):
                    joined = joined or await is_live(self._connection, worker_id(child.pid))
            log.error("worker %d exited with %d", child.pid, child.returncode)
            with contextlib.suppress(*BROKER_LOST):  # its leases also expire by themselves
                await release_leases(self._connection, worker_id(child.pid))
            self._ever_joined = self._ever_joined or joined
            if not self._ever_joined:
                raise RuntimeError(f"a worker exited with {child.returncode} before it was ready")
            failures = 0 if joined else failures + 1
            await asyncio.sleep(min(_MAX_BACKOFF_S, 0.25 * 2**failures))
