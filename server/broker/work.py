"""The workers' half of the broker: be seen, take jobs, publish, end them; keep avatars.

Knows: the worker's side of a job's keys. Does not know models: references are bytes here.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from server.broker import messages, redis
from server.protocol import AvatarView, ModelView

_WORKER_TTL_S = 15
_TICK_MS = 500


@dataclass(frozen=True)
class Claim:
    """A job that this worker now has in hand."""

    job_id: str
    request: messages.AnyRequest


@dataclass(frozen=True)
class Limits:
    """How long and how many: see `server.settings`."""

    job_ttl_s: int
    avatar_ttl_s: int
    max_avatars: int
    max_videos: int


@dataclass(frozen=True)
class Work:
    """One worker's access, under its id."""

    connection: redis.Connection
    worker_id: str
    limits: Limits

    async def join(self) -> None:
        """Make sure that the queue's consumer group exists."""
        try:
            await self.connection.redis.xgroup_create(redis.JOBS, redis.GROUP, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def beat(self, models: Sequence[ModelView]) -> None:
        """Say that this worker lives and what it has loaded; due again within some seconds."""
        text = json.dumps([model.model_dump() for model in models])
        key = redis.worker_key(self.worker_id)
        await self.connection.redis.set(key, text, ex=_WORKER_TTL_S)
        await self.connection.redis.sadd(redis.WORKERS, self.worker_id)

    async def leave(self) -> None:
        """Stop being counted. Call it with no job in hand."""
        await self.connection.redis.delete(redis.worker_key(self.worker_id))
        await self.connection.redis.srem(redis.WORKERS, self.worker_id)
        await self.connection.redis.xgroup_delconsumer(redis.JOBS, redis.GROUP, self.worker_id)

    async def claim(self) -> Claim | None:
        """The next job; ``None`` when none came within half a second."""
        reply = await self.connection.blocking.xreadgroup(
            redis.GROUP, self.worker_id, {redis.JOBS: ">"}, count=1, block=_TICK_MS
        )
        for _, entries in reply:
            for entry, fields in entries:
                job_id = fields[b"job"].decode()
                first, _ = messages.pack_command(messages.Read(index=-1))
                text = await self.connection.claim(
                    [redis.JOBS, redis.job_key(job_id), redis.in_key(job_id)],
                    [entry, redis.GROUP, self.worker_id, first, self.limits.job_ttl_s],
                )
                if text is not None:
                    return Claim(job_id, messages.unpack_request(text))
        return None

    async def part(self, job_id: str, part: str) -> bytes | None:
        """An upload of the job (`redis.PARTS`)."""
        return await self._get(redis.part_key(job_id, part))

    async def commands(self, job_id: str) -> AsyncIterator[messages.AnyCommand]:
        """What the readers of a job say, for as long as it runs; what was read is gone."""
        last = b"0"
        while True:
            reply = await self.connection.blocking.xread(
                {redis.in_key(job_id): last}, count=100, block=0
            )
            for _, entries in reply:
                for entry, fields in entries:
                    last = entry
                    yield messages.unpack_command(fields[b"m"], fields[b"b"])
                # On the client without a timeout: one with it may lose a cancellation.
                await self.connection.blocking.xdel(
                    redis.in_key(job_id), *(entry for entry, _ in entries)
                )

    async def publish(self, job_id: str, event: messages.Progress) -> bool:
        """False when the job does not run any more: cancelled, or expired.

        Raises `ServiceError` ``busy`` when there is no memory for it.
        """
        text, data = messages.pack_event(event)
        facts: list[Any] = []
        if isinstance(event, messages.Started):
            facts = ["total_s", event.total_s or 0]
        elif isinstance(event, messages.Fragment) and event.frames:
            facts = ["duration_s", event.start_s + event.duration_s]
            facts += ["frames", event.first_frame + event.frames]
        keys = [redis.job_key(job_id), redis.out_key(job_id), redis.in_key(job_id)]
        arguments = [text, data, self.limits.job_ttl_s, *facts]
        return bool(
            await redis.with_room(self.connection, lambda: self.connection.publish(keys, arguments))
        )

    async def end(self, job_id: str, ending: messages.Ending) -> None:
        """Say how the job ended, and give back what it held in the queue."""
        event, _ = messages.pack_event(ending)
        status, facts = "done", list[Any]()
        if isinstance(ending, messages.Failed):
            status, facts = "failed", ["code", ending.code, "detail", ending.detail]
        elif isinstance(ending, messages.Done):
            facts = ["frames", ending.frames, "duration_s", ending.duration_s]
        await self.connection.end(job_id, status, event, self.limits.job_ttl_s, *facts)

    async def release(self, claim: Claim) -> None:
        """The last step of every job, however it ended."""
        await self.connection.redis.delete(redis.in_key(claim.job_id))
        if claim.request.keep:
            old = await self._keep(redis.VIDEOS, claim.job_id, self.limits.max_videos)
            for job_id in old:
                await redis.drop_video(self.connection, job_id)

    async def save_avatar(self, avatar: AvatarView, reference: bytes) -> None:
        """Keep a prepared portrait; the longest unused one goes when there are too many."""
        key = redis.avatar_key(avatar.avatar_id)
        fields = {"view": avatar.model_dump_json(), "reference": reference}
        await redis.with_room(
            self.connection, lambda: self.connection.redis.hset(key, mapping=fields)
        )
        await self.connection.redis.expire(key, self.limits.avatar_ttl_s)
        for old in await self._keep(redis.AVATARS, avatar.avatar_id, self.limits.max_avatars):
            await redis.drop_avatar(self.connection, old)

    async def load_avatar(self, avatar_id: str) -> bytes | None:
        """The reference of `save_avatar`, now the most recently used."""
        key = redis.avatar_key(avatar_id)
        reference = await self.connection.redis.hget(key, "reference")
        if reference is None:
            return None
        await self.connection.redis.expire(key, self.limits.avatar_ttl_s)
        await self.connection.redis.zadd(redis.AVATARS, {avatar_id: time.time()})
        return bytes(reference)

    async def _get(self, key: str) -> bytes | None:
        value = await self.connection.redis.get(key)
        return None if value is None else bytes(value)

    async def _keep(self, ranking: str, name: str, limit: int) -> list[str]:
        """Put ``name`` first; returns those that now are one too many, the oldest first."""
        await self.connection.redis.zadd(ranking, {name: time.time()})
        extra = await self.connection.redis.zcard(ranking) - limit
        if extra <= 0:
            return []
        popped = await self.connection.redis.zpopmin(ranking, extra)
        return [member.decode() for member, _ in popped]
