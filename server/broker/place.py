"""A job's place, from before its uploads arrive until it is queued."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from server.broker import messages, redis, reservations
from server.broker.reservations import Amount

if TYPE_CHECKING:
    from server.broker.producer import JobProducer

_BLOCK_BYTES = 1 << 20
_UPLOAD_TTL_S = 60  # without a new block; longer than a client may pause
_RENEW_S = 10.0


class Place:
    """Takes a job's uploads, block by block, and then its request.

    Uploads go to Redis as they arrive; this process holds at most a block of each.
    """

    def __init__(self, producer: JobProducer, kind: str, job_id: str) -> None:
        self.job_id, self.submitted = job_id, False
        self._producer, self._kind = producer, kind
        self._stored: dict[str, int] = {}
        self._blocks: dict[str, bytearray] = {}
        self._reserved, self._reserved_s = Amount(), 0.0

    async def reserve(self, upload_bytes: int) -> None:
        """Ask for the place, and for room for so many bytes.

        Raises `ServiceError` ``busy`` or ``too_large``.
        """
        await self._reserve(Amount(upload_bytes), _UPLOAD_TTL_S)

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
        stored = sum(self._stored.values())
        if guessed:
            video_bytes = min(video_bytes, self._producer.limits.largest.redis_bytes - stored)
        await self._reserve(Amount(stored + max(0, video_bytes)), self._producer.job_ttl_s)
        request = request.model_copy(update={"upload_bytes": stored})
        await self._producer.queue(self.job_id, request, self._producer.max_jobs)
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
        connection, key = self._producer.connection, redis.part_key(self.job_id, part)
        at = self._stored.get(part, 0)

        async def write() -> Any:
            async with connection.redis.pipeline(transaction=False) as pipeline:
                pipeline.setrange(key, at, block)
                pipeline.expire(key, self._producer.job_ttl_s)
                return await pipeline.execute()

        await redis.with_eviction(connection, write, self._producer.owner)
        self._stored[part] = at + len(block)
        if time.monotonic() - self._reserved_s > _RENEW_S:
            await self._reserve(self._reserved, _UPLOAD_TTL_S)
