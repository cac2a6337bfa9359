"""The benchmark for GPUs runs to its end without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def bench(*args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(ROOT / "bench" / "gpu.sh"), *args],
        env={**os.environ, **own, **settings},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_it_times_every_network_and_goes_on_when_one_fails(tmp_path: Path) -> None:
    done = bench("--dry", str(tmp_path), BACKENDS="eager,tensorrt")
    assert done.returncode == 0, done.stderr
    timings = json.loads((tmp_path / "timings.json").read_text())
    functions = {(t["case"]["network"], t["function"]) for t in timings}
    assert functions == {
        ("motion-fast", "context"),
        ("motion-fast", "denoise"),
        ("motion-teacher", "context"),
        ("motion-teacher", "denoise"),
        ("video-student", "context"),
        ("video-student", "denoise"),
        ("video-teacher", "context"),
        ("video-teacher", "denoise"),
        ("video-reference", "reference"),
        ("video-decoder", "decode"),
    }
    assert all(t["ms"] > 0 for t in timings)
    assert all(t["tflop"] > 0 for t in timings if (t["function"]) != "context")
    report = (tmp_path / "report.md").read_text()
    if not torch.cuda.is_available():
        assert "| video-student | tensorrt fp16 | failed: ValueError: tensorrt cannot run" in report
    windows = report.split("Whole windows")[1]
    assert "| motion-fast, 2 steps | eager fp16 | 2 |" in windows
    assert "| motion-teacher, 50 evaluations | eager fp16 | 1 |" in windows
    assert "| video student, 2 steps | eager fp16 | 2 |" in windows
    live = json.loads((tmp_path / "live.json").read_text())
    assert live["runs"][0]["sessions"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "there is no GPU; --dry tries the program without one" in done.stderr
