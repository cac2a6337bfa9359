"""Runs the real service in processes of its own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
FAKE = {
    "FADA_PIPELINE": "tests.server.fake_pipeline:load_pipeline",
    "FADA_MODELS": "fake",
    "FADA_WORKERS": "1",
}
KEYS = ("first-key-of-two", "s/2:%+=-and-longer")
ORIGIN = "https://avatars.example"
_STOP_S = 20.0


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with ``settings`` instead of its own ``FADA_*``.

    Only the folder of engines is kept.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name == "FADA_ENGINES" or not name.startswith("FADA_")
    }
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    return {**own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **settings}


@dataclass
class Service:
    """A running service; ``log`` is the file of its processes' output."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30.0)

    def children(self) -> list[int]:
        """Process ids of the workers and the embedded Valkey."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def workers(self) -> list[int]:
        return [c for c in self.children() if b"worker" in command_line(c)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_STOP_S)


def command_line(process_id: int) -> bytes:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@contextmanager
def running(settings: Mapping[str, str], command: str = "serve") -> Iterator[Service]:
    """Start `fada serve`, or `fada api`, on a free port; ready when the block begins."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "fada.cli", command, "--port", "0"],
                env=environment(
                    {"FADA_DATA": f"{directory}/data", "TMPDIR": directory, **settings}
                ),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
            stopping(process),
        ):
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "ready on http://" in line, log.read_text()
            yield Service(line.split()[-1], process, log)


@contextmanager
def working(settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start `fada worker`; it may not be ready when the block begins."""
    command = [sys.executable, "-m", "fada.cli", "worker"]
    quiet = subprocess.DEVNULL
    with (
        subprocess.Popen(command, env=environment(settings), stderr=quiet) as process,
        stopping(process),
    ):
        yield process


@contextmanager
def stopping(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Stop the process at the end of the block, whatever happens in it."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
