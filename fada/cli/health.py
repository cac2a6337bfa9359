"""`fada health`: is the API, or a worker, of this machine alive? For container health checks."""

from __future__ import annotations

import argparse
import asyncio
import socket
import urllib.request

from fada.cli.settings import read_settings, required_redis_url
from server.broker.liveness import live_workers
from server.broker.redis import BROKER_LOST, connect

_TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=["api", "worker"])
    parser.add_argument("--port", type=int, default=8000, help="the API's [%(default)s]")


def run(options: argparse.Namespace) -> int:
    """0 if the role is alive, else 1."""
    settings = read_settings(options)
    if options.role == "api":
        return 0 if api_lives(options.port) else 1
    return 0 if worker_lives(required_redis_url(settings, "fada health worker")) else 1


def api_lives(port: int) -> bool:
    """Whether ``/healthz`` answers on this machine."""
    try:
        address = f"http://127.0.0.1:{port}/healthz"
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            return answer.status == 200
    except OSError:
        return False


def worker_lives(url: str) -> bool:
    """Whether a worker of this machine sends heartbeats to the broker at ``url``."""
    return asyncio.run(_worker_lives(url))


async def _worker_lives(url: str) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT_S), connect(url) as connection:
            host = socket.gethostname()
            names = await live_workers(connection)
            return any(name.rpartition("-")[0] == host for name in names)
    except (TimeoutError, *BROKER_LOST):
        return False
