"""A job's place, from before its uploads arrive until it is queued."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from server.broker import messages, redis, reservations
from server.broker.amount import NOTHING, Amount, amount
from server.errors import ServiceError

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
        self._upload_bytes = self._received_bytes = 0
        self._reserved, self._reserved_s = NOTHING, 0.0

    async def reserve(self, upload_bytes: int, *, guessed: bool) -> None:
        """Ask for the place, and for room for so many bytes; see `JobProducer.place`."""
        self._to_folder = self._folder is not None and upload_bytes > SMALL_BYTES
        if guessed:
            upload_bytes = min(upload_bytes, self._largest(in_folder=self._to_folder))
        self._upload_bytes = upload_bytes
        await self._reserve(amount(upload_bytes, in_folder=self._to_folder), _UPLOAD_TTL_S)

    async def write(self, part: str, data: bytes) -> None:
        """Append to an upload, one of `redis.PARTS`.

        Raises `ServiceError` ``busy`` where it cannot be stored, ``too_large`` beyond what is
        reserved.
        """
        self._received_bytes += len(data)
        if self._received_bytes > self._upload_bytes:
            raise ServiceError(
                "too_large",
                f"the uploads are too large, expected {self._upload_bytes} bytes at most",
            )
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
        uploads = amount(self._received_bytes, in_folder=self._to_folder)
        uploads += Amount(await self._producer.reference_bytes(request))
        in_folder = request.keep and self._folder is not None and video_bytes > SMALL_BYTES
        if guessed:
            taken = uploads.folder_bytes if in_folder else uploads.redis_bytes
            video_bytes = min(video_bytes, self._largest(in_folder=in_folder) - taken)
        video = amount(max(0, video_bytes), in_folder=in_folder)
        await self._reserve(uploads + video, self._producer.job_ttl_s)
        folder = self._folder if self._to_folder or in_folder else None
        await self._producer.queue(
            self.job_id,
            request.model_copy(update={"uploads": uploads, "in_folder": in_folder}),
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

    def _largest(self, *, in_folder: bool) -> int:
        largest = self._producer.limits.largest
        return largest.folder_bytes if in_folder else largest.redis_bytes

    async def _reserve(self, wanted: Amount, ttl_s: int) -> None:
        producer = self._producer
        await reservations.reserve(
            producer.connection,
            self.job_id,
            wanted,
            limits=producer.limits,
            ttl_s=ttl_s,
            places=producer.max_jobs,
            kind=self._kind,
            client=producer.client,
            owner=producer.owner,
        )
        self._reserved, self._reserved_s = wanted, time.monotonic()

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
