"""OpenVINO reports nothing over the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.server.service import environment

_SPY = """
import socket, sys

def resolve(*args, **kwargs):
    print("LOOKED UP", args[0])
    raise OSError("no network here")

socket.getaddrinfo = resolve
import engines.openvino
import server.worker.worker
print(*sorted(name for name in sys.modules if "telemetry" in name and sys.modules[name]))
"""


def test_nothing_is_reported(tmp_path: Path) -> None:
    """Nor at exit: reports are sent by threads that the interpreter waits for."""
    done = subprocess.run(
        [sys.executable, "-c", _SPY],
        env={**environment({}), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "LOOKED UP" not in done.stdout
    assert "openvino_telemetry" not in done.stdout
    assert not list(tmp_path.iterdir())
