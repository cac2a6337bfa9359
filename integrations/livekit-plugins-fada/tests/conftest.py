"""The real service on a real socket, run by the environment of the checkout."""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Draws flat colours, so that tests see which frame is which and spend no time on faces.
FAKE = {
    "FADA_PIPELINE": "tests.server.fake_pipeline:load_pipeline",
    "FADA_MODELS": "fake",
    "FADA_WORKERS": "1",
}
KEY = "a-key-of-the-service"
PORTRAIT = base64.b64decode(  # 64 × 64 pixels of grey, PNG
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4CAAAAKUlEQVR42u3MQREAAAwCIKMb3RD77SAA6VEEAoFAIBAI"
    "BAKBQCAQfA8G320AeXC6efoAAAAASUVORK5CYII="
)


@dataclass
class Service:
    url: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with serving() as running:
        yield running


@contextmanager
def serving() -> Iterator[Service]:
    """A service for the length of the block."""
    python = os.environ.get("FADA_TEST_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    own = {name: value for name, value in os.environ.items() if not name.startswith("FADA_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        settings = {**FAKE, "FADA_API_KEYS": KEY, "FADA_DATA": f"{folder}/data", "TMPDIR": folder}
        process = subprocess.Popen(
            [python, "-m", "fada.cli", "serve", "--port", "0"],
            env={**own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **settings},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "ready on http://" in line, (Path(folder) / "log").read_text()
            yield Service(line.split()[-1], process)
        finally:
            process.terminate()
            process.wait(20)
