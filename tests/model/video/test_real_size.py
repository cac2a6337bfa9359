"""The real size on any machine: shapes at once, weights within their own size."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from model.video import checkpoints
from model.video.config import MotionConfig, UNetConfig
from model.video.unet3d import DenoisingUNet
from model.video.weights import Renamer, on_meta

STUDENT = UNetConfig(guided=True, prefix_frames=4)

PEAK = """
import re, sys
from pathlib import Path

import torch
from model.video import checkpoints
from model.video.config import MotionConfig, UNetConfig
from model.video.unet3d import DenoisingUNet
from model.video.weights import load_net, on_meta, read_tensors


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])


path = Path(sys.argv[1])
before = peak()
{load}
read = [int(p.view(torch.int16).flatten()[::512].max()) for p in net.parameters()]
size = sum(2 * p.numel() for p in net.parameters())
print(size, peak() - before)
"""
OWN_FILE = "net, _ = load_net(path)"
RELEASE = """
net = on_meta(lambda: DenoisingUNet({config!r}))
checkpoints.load(net, read_tensors(path), checkpoints.UNET, torch.float16)
"""


def loaded(code: str, path: Path) -> tuple[int, int]:
    """Bytes of the network's parameters, and bytes by which a fresh process grew at most."""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(load=code), str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    size, used = (int(v) for v in done.stdout.split())
    return size, used


def test_a_real_size_student_has_its_shapes_without_its_memory() -> None:
    net = on_meta(lambda: DenoisingUNet(STUDENT))
    assert 1.2e9 < sum(p.numel() for p in net.parameters()) < 1.4e9
    assert all(p.is_meta for p in net.parameters())


def sparse_weights(path: Path) -> None:
    """A student's file of zeros that takes no room on the disk."""
    header: dict[str, object] = {
        "__metadata__": {
            "kind": "denoising_unet",
            "config": json.dumps(asdict(STUDENT)),
            "metadata": "{}",
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
    sparse_weights(tmp_path / "student.safetensors")
    size, used = loaded(OWN_FILE, tmp_path / "student.safetensors")
    assert size > 2.4e9
    assert 0.9 * size < used < 1.1 * size  # not less: every page was read


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_release_is_converted_without_being_resident_beside_the_result(tmp_path: Path) -> None:
    config = UNetConfig(
        channels=(320, 640),
        attention=(True, True),
        heads=(8, 8),
        motion=MotionConfig(down=(True, True), up=(True, True)),
    )
    path = tmp_path / "denoising_unet.pth"
    foreign = Renamer(checkpoints.UNET).foreign
    shapes = on_meta(lambda: DenoisingUNet(config)).state_dict()
    torch.save({foreign(key): torch.zeros(value.shape) for key, value in shapes.items()}, path)
    size, used = loaded(RELEASE.format(config=config), path)
    assert size > 0.3e9
    assert 0.9 * size < used < 1.1 * size + 128e6
