"""`fada bench live` against services of the fake pipeline."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.service import FAKE, environment


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fada.cli", "bench", "live", "--size", "128", *flags],
        env=environment(FAKE),
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_it_brings_its_own_service_and_writes_what_it_saw(tmp_path: Path) -> None:
    figures, picture = tmp_path / "live.json", tmp_path / "live.svg"
    done = bench(
        "--sessions", "2", "--seconds", "4", "--json", str(figures), "--plot", str(picture)
    )
    assert done.returncode in (0, 1), done.stderr  # 1: this machine was too busy to keep up
    assert "first fragment, alone" in done.stdout
    report = json.loads(figures.read_text())
    assert report["largest_real_time"] is None
    assert 0 < report["first_fragment_s"]["p50"] <= report["first_fragment_s"]["p95"]
    (run,) = report["runs"]
    assert run["sessions"] == 2
    assert run["refused"] == run["broken"] == 0
    assert run["frames_per_s"] > 10
    # A window and its look-ahead arrive before its first frame is made; the sound of its second
    # fragment waits half a window less.
    assert run["mic_to_fragment_s"]["p95"] > 0.48
    assert run["mic_to_fragment_s"]["p50"] > 0.32
    assert run["real_time"] == (done.returncode == 0)
    assert set(run["stages"]) >= {"denoise", "draw", "encode"}
    if sys.platform == "linux":
        assert set(run["cpu"]) >= {"api", "worker", "broker", "client"}
    assert "<svg" in picture.read_text()


def test_wrong_numbers_are_told() -> None:
    done = bench("--sessions", "0")
    assert done.returncode == 1
    assert re.search("--sessions = 0, expected 1 to 64", done.stderr)


def test_no_service_there_is_told() -> None:
    done = bench("--url", "ws://127.0.0.1:1", "--sessions", "1")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


@pytest.mark.slow
def test_the_largest_number_is_looked_for(tmp_path: Path) -> None:
    figures = tmp_path / "live.json"
    done = bench("--search", "--sessions", "2", "--seconds", "1", "--json", str(figures))
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(figures.read_text())
    kept = [run["sessions"] for run in report["runs"] if run["real_time"]]
    assert report["largest_real_time"] == max(kept, default=0)
    assert (report["largest_real_time"] == 2) == (done.returncode == 0)
