from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.broker.embedded import embedded_server, valkey_program
from tests.server.service import environment

KEEPER = """
import time
from server.broker.embedded import embedded_server, valkey_program
with embedded_server(valkey_program()) as server:
    print(server.child.pid, flush=True)
    time.sleep(60)
"""


def gone(process_id: int) -> bool:
    """Whether the process is gone, waiting for the kernel."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_the_server_is_private_and_leaves_no_files() -> None:
    with embedded_server(valkey_program()) as server:
        path = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    assert server.child.returncode is not None


def test_two_servers_share_nothing() -> None:
    with embedded_server(valkey_program()) as one, embedded_server(valkey_program()) as other:
        assert one.url != other.url


def test_a_program_that_is_not_a_server_fails() -> None:
    with (
        pytest.raises(RuntimeError, match="exited with"),
        embedded_server(Path("/bin/false")),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_server_dies_with_its_killed_parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = str(tmp_path_factory.mktemp("k"))  # short: a socket's path has at most 107 bytes
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, env=environment({"TMPDIR": place})
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        assert gone(child)
