"""Runs the windows of many sessions through the network together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.types import Floats, SessionState, WindowTask
from server import metrics
from server.tasks import cancel_and_wait
from server.worker.scheduler import BatchScheduler, ScheduledWindow

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

MAX_BATCH = 8

Result = tuple[Floats, SessionState]


@dataclass(frozen=True)
class _QueuedTask:
    task: WindowTask
    future: asyncio.Future[Result]
    queued_s: float


class Batcher:
    """One pipeline's queue. ``executor`` runs the steps, off the event loop."""

    def __init__(self, pipeline: AvatarPipeline, executor: Executor) -> None:
        self.pipeline = pipeline
        self._executor = executor
        self._scheduler: BatchScheduler[_QueuedTask] = BatchScheduler(MAX_BATCH)
        self._wake = asyncio.Event()

    @property
    def max_batch(self) -> int:
        """How many windows run together; a change holds from the next batch on."""
        return self._scheduler.max_batch

    @max_batch.setter
    def max_batch(self, windows: int) -> None:
        self._scheduler.max_batch = windows

    async def step(self, session: str, deadline_s: float, task: WindowTask) -> Result:
        """The session's latents and next state; raises what the network raises for this window.

        Cancelling the call takes the window out of the queue.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        queued = _QueuedTask(task, future, time.monotonic())
        self._scheduler.add(ScheduledWindow(session, deadline_s, queued))
        self._wake.set()
        try:
            return await future
        finally:
            self._scheduler.abort(session)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`run` for as long as the block does."""
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            await cancel_and_wait([task])

    async def run(self) -> None:
        """Serve `step` until cancelled: one batch at a time, of all that is queued by then."""
        while True:
            batch = self._scheduler.next_batch()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            for window in batch:
                metrics.stage("queue", time.monotonic() - window.work.queued_s)
            results = await self._attempt([window.work.task for window in batch])
            for window, result in zip(batch, results, strict=True):
                self._scheduler.done(window.session)
                _settle(window.work.future, result)

    async def _attempt(self, tasks: Sequence[WindowTask]) -> list[Result | Exception]:
        """Run a batch; if that fails, run each window alone, so that a bad one fails alone."""
        loop = asyncio.get_running_loop()
        metrics.batch(len(tasks))
        try:
            with metrics.timed_stage("denoise"):
                return [*await loop.run_in_executor(self._executor, self.pipeline.step, tasks)]
        except Exception as error:
            if len(tasks) == 1:
                return [error]
        return [result for task in tasks for result in await self._attempt([task])]


def _settle(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():  # its session was cancelled meanwhile
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    elif not np.isfinite(result[0]).all():
        future.set_exception(FloatingPointError("the network gave latents that are not finite"))
    else:
        future.set_result(result)
