"""What all jobs of a worker share: loaded networks, threads, inputs."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from model.types import Reference
from server.broker.consumer import JobConsumer
from server.errors import ServiceError
from server.worker.batcher import Batcher
from server.worker.capacity import Capacity
from server.worker.portraits import encode_portrait
from server.worker.sandbox import Sandbox

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

_NICE = 10


def _yield_to_live() -> None:
    """The calling thread gets what processor time live sessions leave, where threads can differ."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class WorkerResources:
    """``pipelines`` by name. `serve` must be running while jobs are."""

    def __init__(
        self,
        work: JobConsumer,
        pipelines: dict[str, AvatarPipeline],
        max_audio_s: float,
        capacity: Capacity,
        sandbox: Sandbox,
    ) -> None:
        self.work, self.max_audio_s, self.capacity = work, max_audio_s, capacity
        self.sandbox = sandbox
        # Jobs that may have ended a worker, and are tried once more with nothing beside them.
        self.quarantine: set[str] = set()
        cores = os.cpu_count() or 1
        self._network = ThreadPoolExecutor(1, "network")
        # The trackers are not thread-safe.
        self._portraits = ThreadPoolExecutor(1, "portraits", _yield_to_live)
        # Two, so that no live fragment waits in line behind an offline one.
        self.live_pool = ThreadPoolExecutor(cores, "live")
        self.pool = ThreadPoolExecutor(cores, "draw", _yield_to_live)
        self._batchers = {name: Batcher(p, self._network) for name, p in pipelines.items()}

    async def serve(self) -> None:
        """Run the networks for ever."""
        async with asyncio.TaskGroup() as group:
            for batcher in self._batchers.values():
                group.create_task(batcher.run())

    def close(self) -> None:
        """Give the threads back; those that wait for a decoder, once the sandbox is closed."""
        for executor in (self._network, self._portraits, self.live_pool, self.pool):
            executor.shutdown(cancel_futures=True)

    def batcher(self, model: str) -> Batcher:
        """Raises `ServiceError` ``invalid_option`` for a model that is not loaded."""
        if model not in self._batchers:
            raise ServiceError(
                "invalid_option",
                f"model is {model!r}; this worker has {', '.join(self._batchers)}",
            )
        return self._batchers[model]

    async def part(self, job_id: str, part: str) -> bytes:
        """An upload. Raises `ServiceError` ``not_found`` when it has expired."""
        blob = await self.work.part(job_id, part)
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
            return await loop.run_in_executor(self._portraits, self._encoded, pipeline, portrait)
        packed = await self.work.load_avatar(avatar_id, job_id)
        if packed is None:
            raise ServiceError("not_found", f"there is no avatar {avatar_id!r}")
        return Reference.from_bytes(packed)

    def _encoded(self, pipeline: AvatarPipeline, portrait: bytes) -> Reference:
        return encode_portrait(pipeline, self.sandbox.picture(portrait))
