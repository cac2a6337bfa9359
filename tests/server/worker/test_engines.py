"""A worker has the engine built that its student lacks, while it serves, and switches to it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import provision
from engines.base import BACKENDS, ProgramNet
from engines.example_inputs import motion_inputs
from engines.motion_error import synthetic_voice
from engines.openvino import OpenVINONet
from engines.openvino_convert import compiled
from engines.provision import default_build
from engines.student_engines import StudentEngines
from model.audio.stream import windows_of
from model.diffusion.cached_context import CachedContext
from model.models import WEIGHTS, motion_pipeline, motion_student
from model.motion.checkpoint import MotionWeights
from model.motion.rollout import MotionOnly, reference_of
from model.portrait.blendshapes import REFERENCE_DIM
from model.types import Floats, SessionState, WindowTask
from server.errors import SetupError
from server.settings import Settings
from server.tasks import cancel_and_wait
from server.worker.batcher import Batcher
from server.worker.calibration import Calibration
from server.worker.engines import WorkerEngines
from server.worker.resources import WorkerResources
from tests.engines.networks import (
    predict,
    small_inputs,
    small_model,
    small_student,
    use_fake_tensorrt,
)
from tests.server.fake_pipeline import FakePipeline

pytestmark = pytest.mark.anyio

TENSORRT = BACKENDS["tensorrt"]
COMMAND = (sys.executable, "-m", "tests.server.worker.engine_build")


@pytest.fixture(autouse=True)
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """TensorRT without a GPU; the file has a line for each build."""
    use_fake_tensorrt(monkeypatch)
    monkeypatch.setattr("server.worker.calibration._ROUNDS", 1)
    monkeypatch.setenv("FADA_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("TEST_BUILDS", str(tmp_path / "builds"))
    monkeypatch.setenv("TEST_FATE", "built")
    monkeypatch.setattr("server.worker.engines._POLL_S", 0.02)
    return tmp_path / "builds"


def count(builds: Path) -> int:
    return len(builds.read_text().splitlines()) if builds.exists() else 0


class Served(FakePipeline):
    """Asks the engine at each step, as a student does."""

    def __init__(self, forward: CachedContext[Any]) -> None:
        super().__init__("fake")
        self.forward = forward

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        predict(self.forward, small_inputs(len(tasks)))
        return super().step(tasks)


class Followed(WorkerEngines):
    """Keeps the first word of every ``detail``."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "detail":
            self.__dict__.setdefault("details", set()).add(str(value).split(" ")[0])
        super().__setattr__(name, value)


class OneWorker:
    def __init__(self, mode: str = "auto", timeout_s: float = 60.0) -> None:
        self.forward = CachedContext[Any](small_model().net)  # type: ignore[arg-type]
        made = StudentEngines(lambda _: self.forward)
        made.engine(small_student())
        pipeline = Served(self.forward)
        calibration = Calibration({"fake": pipeline}, 1)
        self.resources = WorkerResources(
            None,  # type: ignore[arg-type]
            {"fake": pipeline},
            capacity=calibration.capacity(8),
            sandbox=None,  # type: ignore[arg-type]
            max_audio_s=1.0,
        )
        settings = Settings(engines_build=mode)  # type: ignore[call-arg, arg-type]
        self.engines = Followed(
            settings,
            self.resources,
            calibration,
            made=made,
            command=COMMAND,
            timeout_s=timeout_s,
        )


@contextmanager
def worker(mode: str = "auto", timeout_s: float = 60.0) -> Iterator[OneWorker]:
    one = OneWorker(mode, timeout_s)
    try:
        yield one
    finally:
        one.resources.close()


def noted() -> provision.Failure | None:
    return default_build("fake", small_student()).failure


async def test_two_workers_build_once_and_both_switch(
    builds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with worker() as one, worker() as other, caplog.at_level(logging.INFO):
        caplog.clear()
        await asyncio.gather(one.engines.run(), other.engines.run())
        for each in (one, other):
            assert each.resources.batcher("fake").max_batch == 4
            assert isinstance(each.forward.net, ProgramNet)
            assert each.engines.detail == ""
    details = [vars(each.engines)["details"] for each in (one, other)]
    assert sorted("building" in each for each in details) == [False, True]
    assert set.union(*details) == {"", "building", "comparing", "waiting"}
    assert count(builds) == 1
    assert caplog.text.count("fake runs on tensorrt fp16, batches 1 to 4") == 2
    assert caplog.text.count("a window of fake costs") == 2  # measured anew after the switch
    with worker() as later:  # which would have taken it at its start
        await later.engines.run()
    assert count(builds) == 1


@pytest.mark.parametrize(
    ("fate", "attempts", "reason"),
    [
        ("killed", 3, "the build ended with status -9"),
        ("broken", 3, "the build ended with status 3"),
        ("late", 1, "it took longer than 0.5 s"),
    ],
)
async def test_a_build_that_dies_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    builds: Path,
    fate: str,
    attempts: int,
    reason: str,
) -> None:
    monkeypatch.setenv("TEST_FATE", fate)
    with worker(timeout_s=0.5 if fate == "late" else 60.0) as one:
        await one.engines.run()
        assert not isinstance(one.forward.net, ProgramNet)
    with worker() as later:
        await later.engines.run()  # it is not tried again
    failure = noted()
    assert failure is not None and failure.forbids
    assert count(builds) == attempts
    assert caplog.text.count(reason) == 2


async def test_a_worker_that_stops_ends_its_build_and_blames_nothing(
    monkeypatch: pytest.MonkeyPatch, builds: Path
) -> None:
    monkeypatch.setenv("TEST_FATE", "late")
    with worker() as one:
        running = asyncio.create_task(one.engines.run())
        while count(builds) == 0:
            await asyncio.sleep(0.01)
        default_build("fake", small_student()).fail("as builds note when they begin", final=False)
        await cancel_and_wait([running])
    assert noted() is None
    with provision.build_lock(provision.artifacts.default_folder()):
        pass  # the process is gone, or it would hold the lock for a minute


async def test_a_failed_comparison_is_kept_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("TensorRT refused the plan")

    default_build("fake", small_student()).run()
    with worker() as one, monkeypatch.context() as patch:
        wanted = default_build("fake", small_student())
        patch.setattr("engines.provision.needed", lambda *_: wanted)
        patch.setattr("engines.select.load", refuse)
        await one.engines.run()
        assert not isinstance(one.forward.net, ProgramNet)
    assert "TensorRT refused the plan" in caplog.text


async def test_never_builds_nothing_and_only_refuses_to_serve(
    monkeypatch: pytest.MonkeyPatch, builds: Path
) -> None:
    with worker("never") as one:
        await one.engines.run()
    monkeypatch.setattr("engines.provision.unbuildable", lambda: "the driver is too old")
    refused = pytest.raises(SetupError, match="fake has no built engine: the driver is too old")
    with worker("only") as one, refused:
        await one.engines.run()
    assert count(builds) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
async def test_without_a_gpu_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, builds: Path
) -> None:
    monkeypatch.setitem(BACKENDS, "tensorrt", TENSORRT)
    with worker() as one:
        caplog.clear()
        await one.engines.run()
    assert caplog.records == [] and count(builds) == 0


async def test_a_gpu_that_cannot_be_used_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engines.provision.unbuildable", lambda: "the driver is too old")
    with worker() as one:
        await one.engines.run()
    assert caplog.text.count("building no engines for the GPU: the driver is too old") == 1


async def test_sessions_go_on_across_a_switch_without_a_jump() -> None:
    """The shipped student, from plain torch to OpenVINO in the middle of three sessions."""
    weights = motion_student(WEIGHTS / "motion-fast.safetensors")
    fast = compiled(weights.net, motion_inputs(2, guided=True), precision="fp32")
    stayed, switched = await three_sessions(weights, None), await three_sessions(weights, fast)
    assert np.abs(switched - stayed).max() < 2e-3
    assert np.abs(switched - stayed).max() > 0  # the other engine did run


async def three_sessions(weights: MotionWeights, engine: OpenVINONet | None) -> Floats:
    """(3, T, 58) by one batcher, which changes to ``engine`` while the third window is queued."""
    forward = CachedContext[Any](weights.net)
    pipeline = motion_pipeline("fast", weights, MotionOnly(), engine=lambda _: forward)
    windows = windows_of(synthetic_voice(1.2))
    reference = reference_of(np.zeros(REFERENCE_DIM, np.float32))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "network") as network:
        batcher = Batcher(pipeline, network)

        async def session(seed: int) -> Floats:
            state, made = pipeline.start(seed), []
            for index, window in enumerate(windows):
                if index == 2 and seed == 0 and engine is not None:
                    switch = loop.run_in_executor(network, forward.replace, engine)
                task = WindowTask(window, state, reference, pipeline.metadata.guidance, 2)
                latents, state = await batcher.step(str(seed), 0.0, task)
                made.append(latents)
            if seed == 0 and engine is not None:
                await switch
            return np.concatenate(made)

        async with batcher.running():
            return np.stack(await asyncio.gather(*(session(seed) for seed in range(3))))
