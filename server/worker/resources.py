"""What all jobs of a worker share: loaded models, threads and access to inputs."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from model.types import Reference
from server.api.protocol import unknown_model
from server.broker.consumer import JobConsumer
from server.errors import ServiceError
from server.process import usable_cores
from server.worker.batcher import Batcher
from server.worker.capacity import Capacity
from server.worker.marks import NO_MARKS, Marks
from server.worker.pipelines import encode_portrait
from server.worker.sandbox import Sandbox

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

_NICE = 10


def _lower_priority() -> None:
    """Leave the processor to live sessions, where threads can have priorities of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class WorkerResources:
    """``pipelines`` by name. `serve` must be running while jobs are."""

    def __init__(
        self,
        consumer: JobConsumer,
        pipelines: Mapping[str, AvatarPipeline],
        *,
        capacity: Capacity,
        sandbox: Sandbox,
        max_audio_s: float,
        marks: Marks = NO_MARKS,
    ) -> None:
        self.consumer, self.capacity, self.sandbox = consumer, capacity, sandbox
        self.max_audio_s, self.marks = max_audio_s, marks
        # Jobs that may have killed a worker: each is tried once more, with no other job running.
        self.quarantine: set[str] = set()
        cores = usable_cores()
        # One thread: what is submitted to it runs between two batches.
        self.network = ThreadPoolExecutor(1, "network")
        # The trackers are not thread-safe.
        self.portraits = ThreadPoolExecutor(1, "portraits", _lower_priority)
        # Two pools, so that no live fragment queues behind an offline one.
        self.live_pool = ThreadPoolExecutor(cores, "live")
        self.pool = ThreadPoolExecutor(cores, "draw", _lower_priority)
        # What may take its time, such as to load an engine.
        self.background = ThreadPoolExecutor(1, "background", _lower_priority)
        self._batchers = {name: Batcher(p, self.network) for name, p in pipelines.items()}

    async def serve(self) -> None:
        """Run the batchers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for batcher in self._batchers.values():
                group.create_task(batcher.run())

    def close(self) -> None:
        """End the threads. Close the sandbox first: some wait for its decoders."""
        for executor in (
            self.network,
            self.portraits,
            self.background,
            self.live_pool,
            self.pool,
        ):
            executor.shutdown(cancel_futures=True)

    @property
    def models(self) -> tuple[str, ...]:
        """Their names, the default first."""
        return tuple(self._batchers)

    def batcher(self, model: str) -> Batcher:
        """Raises `ServiceError` ``invalid_option`` for a model that is not loaded."""
        if model not in self._batchers:
            raise unknown_model(model, self._batchers)
        return self._batchers[model]

    async def part(self, job_id: str, part: str) -> bytes:
        """An upload. Raises `ServiceError` ``not_found`` when it has expired."""
        blob = await self.consumer.part(job_id, part)
        if blob is None:
            raise ServiceError("not_found", f"the uploaded {part} has expired")
        return blob

    async def reference(
        self, job_id: str, avatar_id: str | None, pipeline: AvatarPipeline
    ) -> Reference:
        """The avatar's, or that of the uploaded portrait.

        Raises `ServiceError` for a portrait that cannot be used, or an avatar that is gone.
        """
        if avatar_id is None:
            portrait = await self.part(job_id, "portrait")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.portraits, self._encode, pipeline, portrait)
        packed = await self.consumer.load_avatar(avatar_id, job_id)
        if packed is None:
            raise ServiceError("not_found", f"there is no avatar {avatar_id!r}")
        return Reference.from_bytes(packed)

    def _encode(self, pipeline: AvatarPipeline, portrait: bytes) -> Reference:
        return encode_portrait(pipeline, self.sandbox.picture(portrait))
