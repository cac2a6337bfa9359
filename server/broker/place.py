"""A job's place, from before its uploads arrive until it is queued."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from server.broker import messages, redis, reservations
from server.broker.amount import Amount

if TYPE_CHECKING:
    from server.broker.folder import SharedFolder
    from server.broker.producer import JobProducer

SMALL_BYTES = 4 << 20  # uploads or a video up to this size stay in Redis
_BLOCK_BYTES = 1 << 20
_UPLOAD_TTL_S = 60  # without a new block; longer than a client may pause
_RENEW_S = 10.0


class Place:
    """Takes a job's uploads, block by block, and then its request.

    Uploads go to Redis as they arrive, large ones to the ``folder`` that workers share; this
    process holds at most a block of each.
    """

    def __init__(
        self, producer: JobProducer, kind: str, job_id: str, *, folder: SharedFolder | None
    ) -> None:
        self.job_id, self.submitted = job_id, False
        self._producer, self._kind, self._folder = producer, kind, folder
        self._to_folder = False
        self._stored: dict[str, int] = {}
        self._blocks: dict[str, bytearray] = {}
        self._reserved, self._reserved_s = Amount(), 0.0

    async def reserve(self, upload_bytes: int) -> None:
        """Ask for the place, and for room for so many bytes.

        Raises `ServiceError` ``busy`` or ``too_large``.
        """
        self._to_folder = self._folder is not None and upload_bytes > SMALL_BYTES
        amount = Amount(0, upload_bytes) if self._to_folder else Amount(upload_bytes)
        await self._reserve(amount, _UPLOAD_TTL_S)

    async def write(self, part: str, data: bytes) -> None:
        """Append to an upload, one of `redis.PARTS`. Raises `ServiceError` ``busy``."""
        block = self._blocks.setdefault(part, bytearray())
        block += data
        if len(block) >= _BLOCK_BYTES:
            await self._flush(part)

    async def submit(
        self, request: messages.AnyRequest, *, video_bytes: int = 0, guessed: bool = False
    ) -> str:
        """Queue the job and return its id; its video will take about ``video_bytes``.

        Raises `ServiceError` ``busy`` or ``too_large`` when that does not fit. A number that is
        only ``guessed`` does not make a job too large: the worker will know better.
        """
        for part in self._blocks:
            await self._flush(part)
        stored, largest = sum(self._stored.values()), self._producer.limits.largest
        in_folder = self._folder is not None and video_bytes > SMALL_BYTES
        uploads = Amount(0, stored) if self._to_folder else Amount(stored)
        if guessed and in_folder:
            video_bytes = min(video_bytes, max(0, largest.folder_bytes - uploads.folder_bytes))
        elif guessed:
            video_bytes = min(video_bytes, max(0, largest.redis_bytes - uploads.redis_bytes))
        video = Amount(0, video_bytes) if in_folder else Amount(video_bytes)
        await self._reserve(uploads + video, self._producer.job_ttl_s)
        changes: dict[str, Any] = {"uploads": uploads}
        if isinstance(request, messages.AnimateRequest):
            changes |= {"in_folder": in_folder}
        folder = self._folder if self._to_folder or in_folder else None
        await self._producer.queue(
            self.job_id,
            request.model_copy(update=changes),
            self._producer.max_jobs,
            folder="" if folder is None else folder.token,
        )
        self.submitted = True
        return self.job_id

    async def release(self) -> None:
        """Give the place back."""
        await redis.retry_on_disconnect(
            partial(reservations.release, self._producer.connection, self.job_id)
        )

    async def _reserve(self, amount: Amount, ttl_s: int) -> None:
        producer = self._producer
        await reservations.reserve(
            producer.connection,
            self.job_id,
            amount,
            limits=producer.limits,
            ttl_s=ttl_s,
            places=producer.max_jobs,
            kind=self._kind,
            client=producer.client,
            owner=producer.owner,
        )
        self._reserved, self._reserved_s = amount, time.monotonic()

    async def _flush(self, part: str) -> None:
        block = bytes(self._blocks[part])
        self._blocks[part].clear()
        at = self._stored.get(part, 0)
        if self._to_folder and self._folder is not None:
            await self._folder.write(self.job_id, part, block, at=at)
        else:
            await self._to_redis(part, block, at)
        self._stored[part] = at + len(block)
        if time.monotonic() - self._reserved_s > _RENEW_S:
            await self._reserve(self._reserved, _UPLOAD_TTL_S)

    async def _to_redis(self, part: str, block: bytes, at: int) -> None:
        connection, key = self._producer.connection, redis.part_key(self.job_id, part)

        async def write() -> Any:
            async with connection.redis.pipeline(transaction=False) as pipeline:
                pipeline.setrange(key, at, block)
                pipeline.expire(key, self._producer.job_ttl_s)
                return await pipeline.execute()

        await redis.with_eviction(connection, write, self._producer.owner)
