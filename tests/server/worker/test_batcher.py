from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from model.types import Floats, Guidance, SessionState, Window, WindowTask
from server.worker.batcher import Batcher
from tests.server.fake_pipeline import FakePipeline

pytestmark = pytest.mark.anyio


class Gated(FakePipeline):
    """Holds its steps until ``gate`` is set; seed 13 fails, seed 14 gives NaN."""

    def __init__(self) -> None:
        super().__init__("gated")
        self.gate = threading.Event()
        self.entered = threading.Event()

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        self.entered.set()
        assert self.gate.wait(10)
        if any(task.state.seed == 13 for task in tasks):
            raise ArithmeticError("unlucky")
        return [
            (latents * np.float32(np.nan) if state.seed == 14 else latents, state)
            for latents, state in super().step(tasks)
        ]


@asynccontextmanager
async def batcher_over(pipeline: FakePipeline) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(pipeline, executor)
        running = asyncio.create_task(batcher.run())
        try:
            yield batcher
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def task_of(pipeline: FakePipeline, seed: int) -> WindowTask:
    reference = pipeline.space.encode_reference(np.zeros((8, 8, 3), np.uint8))
    window = Window(0, np.zeros((24, 4), np.float32), 8)
    return WindowTask(window, pipeline.start(seed), reference, Guidance(1, 1), 6)


async def test_waiting_sessions_run_as_one_batch_and_get_their_own_results() -> None:
    pipeline = Gated()
    async with batcher_over(pipeline) as batcher:
        asked = [
            asyncio.create_task(batcher.step(f"s{n}", 0.0, task_of(pipeline, n))) for n in range(12)
        ]
        await asyncio.to_thread(pipeline.entered.wait, 10)
        pipeline.gate.set()
        results = await asyncio.gather(*asked)
    assert sum(pipeline.batches) == 12
    assert max(pipeline.batches) == 8
    assert [state.seed for _, state in results] == list(range(12))


async def test_a_failing_window_fails_alone() -> None:
    pipeline = Gated()
    async with batcher_over(pipeline) as batcher:
        first = asyncio.create_task(batcher.step("first", 0.0, task_of(pipeline, 1)))
        await asyncio.to_thread(pipeline.entered.wait, 10)
        batch = [
            asyncio.create_task(batcher.step(f"s{seed}", 0.0, task_of(pipeline, seed)))
            for seed in (12, 13, 14, 15)
        ]
        pipeline.gate.set()
        await first
        good, failed, nonsense, good_too = await asyncio.gather(*batch, return_exceptions=True)
        assert isinstance(failed, ArithmeticError)
        assert isinstance(nonsense, FloatingPointError)
        assert not isinstance(good, BaseException) and not isinstance(good_too, BaseException)
        again = await batcher.step("s13", 0.0, task_of(pipeline, 3))
    assert again[1].seed == 3


async def test_a_cancelled_session_leaves_the_queue() -> None:
    pipeline = Gated()
    async with batcher_over(pipeline) as batcher:
        first = asyncio.create_task(batcher.step("first", 0.0, task_of(pipeline, 1)))
        await asyncio.to_thread(pipeline.entered.wait, 10)
        unwanted = asyncio.create_task(batcher.step("unwanted", 0.0, task_of(pipeline, 2)))
        await asyncio.sleep(0)
        unwanted.cancel()
        await asyncio.gather(unwanted, return_exceptions=True)
        pipeline.gate.set()
        await first
        await batcher.step("last", 0.0, task_of(pipeline, 3))
    assert pipeline.batches == [1, 1]
