from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server.service import environment

HEAVY = {
    "torch",
    "model",
    "engines",
    "media",
    "training",
    "numba",
    "cv2",
    "av",
    "soundfile",
    "soxr",
    "scipy",
}


@pytest.mark.parametrize("module", ["server.api.app", "server.run", "fada.cli"])
def test_the_api_process_loads_no_model_and_no_media(module: str) -> None:
    assert not HEAVY & loaded_by(module)


def test_a_worker_loads_torch_only_for_models_that_need_it() -> None:
    assert "torch" not in loaded_by("server.worker.worker")


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())
