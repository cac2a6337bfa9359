"""The real size on any machine: shapes at once, weights within their own size."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from model.video.config import UNetConfig
from model.video.unet3d import DenoisingUNet
from model.video.weights import on_meta

STUDENT = UNetConfig(guided=True, prefix_frames=4)

LOADED = """
import resource, sys
from pathlib import Path

import torch
from model.video.weights import load_net


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


before = peak()
net, _ = load_net(Path(sys.argv[1]))
read = [int(p.view(torch.int16).flatten()[::512].max()) for p in net.parameters()]
size = sum(2 * p.numel() for p in net.parameters())
print(size, peak() - before)
"""


def test_a_real_size_student_has_its_shapes_within_a_second() -> None:
    began = time.perf_counter()
    net = on_meta(lambda: DenoisingUNet(STUDENT))
    assert time.perf_counter() - began < 1.0
    assert 1.2e9 < sum(p.numel() for p in net.parameters()) < 1.4e9
    assert all(p.is_meta for p in net.parameters())


def sparse_weights(path: Path) -> None:
    """A student's file of zeros that takes no room on the disk."""
    header: dict[str, object] = {
        "__metadata__": {
            "kind": "denoising_unet",
            "config": json.dumps(asdict(STUDENT)),
            "facts": "{}",
        }
    }
    end = 0
    for key, value in on_meta(lambda: DenoisingUNet(STUDENT)).state_dict().items():
        start, end = end, end + 2 * value.numel()
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_real_size_student_loads_within_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    sparse_weights(path)
    code = [sys.executable, "-c", LOADED, str(path)]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        code,
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    size, used = (int(v) for v in done.stdout.split())
    assert size > 2.4e9
    assert used < 1.1 * size
    assert used > 0.9 * size  # every page was read: the figure is not of an empty promise
