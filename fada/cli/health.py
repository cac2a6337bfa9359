"""`fada health`: does this machine's half of the service live? For container health checks."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

from server.broker.liveness import live_workers
from server.broker.redis import BROKER_LOST, connect

_PATIENCE_S = 5.0


def api_lives(port: int) -> bool:
    """Whether ``/healthz`` answers on this machine."""
    try:
        address = f"http://127.0.0.1:{port}/healthz"
        with urllib.request.urlopen(address, timeout=_PATIENCE_S) as answer:
            return answer.status == 200
    except OSError:
        return False


def worker_lives(url: str) -> bool:
    """Whether a worker of this machine says so in the broker at ``url``."""
    return asyncio.run(_worker_lives(url))


async def _worker_lives(url: str) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE_S), connect(url) as connection:
            host = socket.gethostname()
            names = await live_workers(connection)
            return any(name.rpartition("-")[0] == host for name in names)
    except (TimeoutError, *BROKER_LOST):
        return False
