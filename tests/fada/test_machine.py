"""Which extra a machine needs, as its nvidia-smi lists its cards, and that all pins agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fada import machine
from fada.machine import GPU

ROOT = Path(__file__).parents[2]
L4 = GPU("NVIDIA L4", "8.9", 23034, "580.65.06")
CARDS = {
    "NVIDIA GeForce RTX 4090, 8.9, 24564, 580.65.06": "tensorrt",
    "Tesla T4, 7.5, 15360, 590.44": "tensorrt",
    "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.95.05": "tensorrt-datacenter",
    "NVIDIA A100-SXM4-40GB, 8.0, 40960, 580.65.06": "tensorrt-datacenter",
    "NVIDIA L4, 8.9, 23034, 550.54.15": "serve",  # CUDA 13 needs a later driver
    "Tesla V100-SXM2-16GB, 7.0, 16384, 580.65.06": "serve",
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.": "serve",
    "Tesla K80, [N/A], [N/A], 470.57.02": "serve",
    "": "serve",
}


@pytest.fixture(autouse=True)
def x86_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def smi(folder: Path, text: str, status: int = 0) -> str:
    """A program that prints ``text`` as nvidia-smi would."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("text", CARDS)
def test_the_extra_is_that_of_the_card(text: str, tmp_path: Path) -> None:
    found, _ = machine.gpus(smi(tmp_path, text))
    assert machine.extra(found) == CARDS[text]


def test_a_card_is_read_and_a_failure_is_repeated(tmp_path: Path) -> None:
    assert machine.gpus(smi(tmp_path, "NVIDIA L4, 8.9, 23034, 580.65.06")) == ([L4], None)
    found, problem = machine.gpus(smi(tmp_path, "No devices were found", 6))
    assert found == [] and problem is not None and "No devices were found" in problem
    assert machine.gpus(str(tmp_path / "nothing")) == ([], None)


def test_on_arm64_every_card_has_the_standard_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert machine.extra([L4]) == "tensorrt-datacenter"


def test_the_first_card_that_can_be_used_decides() -> None:
    old = GPU("Tesla K80", "3.7", 11441, "580.65.06")
    assert machine.extra([old, L4]) == "tensorrt"
    assert machine.extra([old]) == machine.extra([]) == "serve"


def test_make_installs_what_the_card_needs(tmp_path: Path) -> None:
    """With the shell's nvidia-smi, before anything is installed."""
    smi(tmp_path, "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.95.05")

    def planned(*words: str) -> str:
        own = [f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
        done = subprocess.run(
            ["make", "-n", "serve", *own, *words],
            cwd=ROOT, env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert "'.[tensorrt-datacenter]'" in planned()
    assert "'.[serve]'" in planned("TORCH_INDEX=https://example.org/whl/cpu")
    assert "'.[tensorrt]'" in planned("EXTRA=tensorrt")


def test_versions_that_go_together_are_the_same_everywhere() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (torch,) = [need for need in extras["serve"] if need.startswith("torch==")]
    version = torch.removeprefix("torch==")
    assert f"torch-tensorrt-rtx=={version}" in extras["tensorrt"]
    assert f"torch-tensorrt=={version}" in extras["tensorrt-datacenter"]
    page = (ROOT / "docs/guide/gpu.md").read_text()
    constraints = (ROOT / "docker/constraints.txt").read_text()
    runtime = re.search(r"^tensorrt-rtx==([\d.]+)$", constraints, re.MULTILINE)
    assert runtime is not None
    for value in (version, runtime[1], f"CUDA {machine.CUDA}", str(machine.MIN_DRIVER)):
        assert value in page, value
    for capability in machine.RTX_CAPABILITIES:
        assert capability in page, capability
