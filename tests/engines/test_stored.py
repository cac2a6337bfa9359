"""A second start takes the engine that the first chose, without torch."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engines import stored
from engines.motion_error import synthetic_voice
from engines.student_engines import StudentEngines
from model.audio.stream import windows_of
from model.models import Choice, load
from model.motion.checkpoint import MotionWeights, save_weights
from model.motion.network import MotionNet, NetConfig
from model.motion.rollout import MotionOnly, reference_of
from model.portrait.blendshapes import MOTION_DIM, REFERENCE_DIM
from model.types import Floats, WindowTask
from model.weights_file import weights_metadata
from tests.server.service import environment

pytestmark = pytest.mark.skipif(stored.NVIDIA_DRIVER.exists(), reason="a GPU may serve instead")


@dataclass(frozen=True)
class Started:
    """A student's file, the folder of engines after its first start, and what that start made."""

    student: Path
    folder: Path
    motion: Floats


@pytest.fixture(scope="module", params=[True, False], ids=["guided", "three branches"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Started:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=32, heads=2, blocks=1, guided=request.param))
    limits = ((0.0, 8.0), (0.0, 4.0)) if request.param else None
    mean, std = torch.randn(MOTION_DIM), torch.rand(MOTION_DIM) + 0.5
    known = weights_metadata("student", 3, 1, limits=limits)
    root = tmp_path_factory.mktemp("student")
    save_weights(root / "student.safetensors", MotionWeights(net, mean, std, known))
    made = motion(root / "student.safetensors", root / "engines", stored=False)
    return Started(root / "student.safetensors", root / "engines", made)


def motion(student: Path, folder: Path, *, stored: bool) -> Floats:
    """Two windows of two sessions, as a worker makes them."""
    engines = StudentEngines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FADA_ENGINES", str(folder))
        (pipeline,) = load(
            Choice(weights=student),
            motion_engine=engines.motion,
            stored_engine=engines.stored,
            space=MotionOnly(),
        ).values()
    ((net, _),) = engines.take()
    assert (net is None) == stored
    reference = reference_of(np.linspace(-1.0, 1.0, REFERENCE_DIM, dtype=np.float32))
    states, made = [pipeline.start(seed) for seed in (1, 2)], []
    for window in windows_of(synthetic_voice(0.64)):
        tasks = [WindowTask(window, s, reference, pipeline.metadata.guidance, 3) for s in states]
        results = pipeline.step(tasks)
        states = [state for _, state in results]
        made.append(np.stack([latents for latents, _ in results]))
    return np.concatenate(made, axis=1)


def test_it_moves_a_face_as_the_first_start_did(started: Started) -> None:
    again = motion(started.student, started.folder, stored=True)
    assert again.shape[0] == 2 and again.dtype == np.float32
    assert float(np.abs(again - started.motion).max() / started.motion.std()) < 1e-4


@pytest.mark.parametrize("started", [True], indirect=True, ids=["guided"])
def test_what_changed_or_was_damaged_since_is_chosen_anew(
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert stored.load(started.student, started.folder) is not None
    other = tmp_path / "other.safetensors"
    other.write_bytes(started.student.read_bytes() + b" ")
    assert stored.load(other, started.folder) is None
    with monkeypatch.context() as patch:
        patch.setattr(stored, "_PACKAGES", ("openvino",))
        assert stored.load(started.student, started.folder) is None
    with monkeypatch.context() as patch:
        patch.setattr(stored, "NVIDIA_DRIVER", started.folder)  # a card was added
        assert stored.load(started.student, started.folder) is None
    assert not [one for one in caplog.records if one.levelno > logging.INFO]
    shutil.copytree(started.folder, tmp_path / "engines")
    for file in tmp_path.glob("engines/openvino-*/*"):
        if file.suffix == ".blob":
            file.unlink()
        elif file.suffix == ".bin":
            file.write_bytes(b"\x40" * file.stat().st_size)
    assert stored.load(started.student, tmp_path / "engines") is None
    assert "choosing the engine of student.safetensors again: " in caplog.text


_LOAD = """
import sys
from server.settings import Settings
from server.worker.pipelines import load_pipelines
(pipeline,) = load_pipelines(Settings()).values()
print(pipeline.name, "torch" in sys.modules)
"""


@pytest.mark.parametrize("started", [True], indirect=True, ids=["guided"])
def test_a_worker_with_a_stored_engine_loads_no_torch(started: Started) -> None:
    settings = {"FADA_WEIGHTS": str(started.student), "FADA_ENGINES": str(started.folder)}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["student", "False"], done.stderr
