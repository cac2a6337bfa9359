"""The API's half of the broker: hand a job in, follow it, cancel it, look things up.

Knows: how a job's keys are made, read and given back. Does not know HTTP, models or media.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.broker import messages, redis
from server.broker.liveness import fail_orphans, live_workers
from server.errors import ServiceError
from server.protocol import AvatarView, JobView, ModelList, ModelView

_TICK_MS = 1000
_NO_WORKER_S = 10.0  # a restarting worker is waited for this long
_FEW = 4  # fragments fetched at once
_FORGET_S = 600


@dataclass(frozen=True)
class Client:
    """``max_jobs`` places in the queue; what is not read is gone after ``job_ttl_s``."""

    connection: redis.Connection
    max_jobs: int
    job_ttl_s: int

    async def submit(
        self, request: messages.AnyRequest, parts: Mapping[str, bytes], places: int | None = None
    ) -> str:
        """Queue a job with its uploads (`redis.PARTS`) and return its id.

        ``places`` says how many jobs, queued and running, it may make; by default ``max_jobs``.

        Raises `ServiceError` ``busy`` without a free place or memory, ``no_worker`` when no
        worker lives.
        """
        if not await live_workers(self.connection):
            raise ServiceError("no_worker", "no worker is connected yet; try again in a moment")
        job_id = secrets.token_hex(12)
        event, _ = messages.pack_event(messages.Queued())
        keys = [redis.JOBS, redis.job_key(job_id), redis.out_key(job_id)]
        places = self.max_jobs if places is None else min(places, self.max_jobs)
        arguments: list[Any] = [
            job_id,
            messages.pack_request(request),
            event,
            places,
            self.job_ttl_s,
        ]

        async def hand_in() -> Any:
            for part, blob in parts.items():
                key = redis.part_key(job_id, part)
                await self.connection.redis.set(key, blob, ex=self.job_ttl_s)
            return await self.connection.submit(keys, arguments)

        taken = False
        try:
            taken = bool(await redis.with_room(self.connection, hand_in))
        finally:
            if not taken:
                await self._drop_parts(job_id)
        if not taken:
            raise ServiceError("busy", f"all {places} places are taken")
        return job_id

    async def follow(self, job_id: str, *, consume: bool) -> AsyncIterator[messages.AnyEvent]:
        """Every event of a job, from the first to its ending.

        ``consume`` gives back each fragment once the caller asks for the next event, which lets
        the worker go on; so the reader's pace is the worker's. Ends early when the job is gone.
        """
        last = b"0"
        waiting_since = time.monotonic()
        while True:
            reply = await self.connection.blocking.xread(
                {redis.out_key(job_id): last}, count=_FEW, block=_TICK_MS
            )
            entries = [entry for _, some in reply for entry in some]
            if not entries and not await self._goes_on(job_id, waiting_since):
                return
            for entry, fields in entries:
                last = entry
                event = messages.unpack_event(fields[b"m"], fields[b"b"])
                yield event
                if isinstance(event, messages.Ending):
                    return
                if consume and isinstance(event, messages.Fragment):
                    await self._consumed(job_id, last, event.index)

    async def cancel(self, job_id: str) -> bool:
        """End the job now; False when it had ended before, or never was."""
        event, _ = messages.pack_event(messages.Cancelled())
        if not await self.connection.end(job_id, "cancelled", event, _FORGET_S):
            return False
        await self._command(job_id, messages.Cancel())
        return True

    async def forget(self, job_id: str) -> None:
        """Drop a job's video; its status stays for a while."""
        await self.connection.redis.delete(redis.out_key(job_id))
        await self.connection.redis.expire(redis.job_key(job_id), _FORGET_S)

    async def erase(self, job_id: str) -> None:
        """Drop all of a live session that has ended; its worker drops the commands unread."""
        await redis.drop_video(self.connection, job_id)
        await self.connection.redis.expire(redis.in_key(job_id), _FORGET_S)

    async def tell(self, job_id: str, command: messages.LiveCommand) -> bool:
        """Say something to a live session; False when it has ended.

        Raises `ServiceError` ``busy`` when there is no memory for it.
        """
        text, data = messages.pack_command(command)
        keys = [redis.job_key(job_id), redis.in_key(job_id)]
        arguments: list[Any] = [text, data, self.job_ttl_s]
        return bool(
            await redis.with_room(self.connection, lambda: self.connection.tell(keys, arguments))
        )

    async def live_places(self, sessions_per_worker: int) -> int:
        """How many jobs the live workers can run at once."""
        return sessions_per_worker * len(await live_workers(self.connection))

    async def view(self, job_id: str) -> JobView | None:
        """How a job stands, or ``None`` for one that is not known (any more)."""
        await fail_orphans(self.connection)
        facts = await self.connection.redis.hgetall(redis.job_key(job_id))
        if not facts or messages.unpack_request(facts[b"request"]).kind != "animate":
            return None
        duration_s = float(facts.get(b"duration_s", 0))
        total_s = float(facts.get(b"total_s", 0))
        status = facts[b"status"].decode()
        progress = min(1.0, duration_s / total_s) if total_s else 0.0
        error = None
        if b"code" in facts:
            error = ServiceError(facts[b"code"].decode(), facts[b"detail"].decode()).problem()
        return JobView.model_validate(
            {
                "id": job_id,
                "status": status,
                "progress": 1.0 if status == "done" else progress,
                "frames": int(facts.get(b"frames", 0)),
                "duration_s": duration_s,
                "error": error,
            }
        )

    async def keeps_video(self, job_id: str) -> bool:
        """Whether the job is known and its video can be read from the start."""
        text = await self.connection.redis.hget(redis.job_key(job_id), "request")
        return (
            text is not None
            and messages.unpack_request(text).keep
            and bool(await self.connection.redis.exists(redis.out_key(job_id)))
        )

    async def models(self) -> ModelList:
        """What the live workers have loaded, in the order that they name it."""
        found: dict[str, ModelView] = {}
        for text in (await live_workers(self.connection)).values():
            for model in json.loads(text):
                found.setdefault(model["name"], ModelView.model_validate(model))
        return ModelList(models=list(found.values()), default=next(iter(found), None))

    async def avatar(self, avatar_id: str) -> AvatarView | None:
        text = await self.connection.redis.hget(redis.avatar_key(avatar_id), "view")
        return None if text is None else AvatarView.model_validate_json(text)

    async def delete_avatar(self, avatar_id: str) -> bool:
        """False when there was none."""
        await self.connection.redis.zrem(redis.AVATARS, avatar_id)
        return bool(await redis.drop_avatar(self.connection, avatar_id))

    async def _goes_on(self, job_id: str, waiting_since: float) -> bool:
        """Looked at when no event came for a while; False when none will come any more."""
        await fail_orphans(self.connection)
        status = await self.connection.redis.hget(redis.job_key(job_id), "status")
        patience_over = time.monotonic() - waiting_since > _NO_WORKER_S
        if status == b"queued" and patience_over and not await live_workers(self.connection):
            failed = messages.Failed(code="no_worker", detail="no worker took the job")
            event, _ = messages.pack_event(failed)
            facts = ["code", failed.code, "detail", failed.detail]
            await self.connection.end(job_id, "failed", event, self.job_ttl_s, *facts)
        return bool(await self.connection.redis.exists(redis.out_key(job_id)))

    async def _consumed(self, job_id: str, entry: bytes, index: int) -> None:
        await self.connection.redis.xdel(redis.out_key(job_id), entry)
        await self._command(job_id, messages.Read(index=index))

    async def _command(self, job_id: str, command: messages.AnyCommand) -> None:
        # NOMKSTREAM: a job that has ended has no command stream, and must not get one again.
        text, data = messages.pack_command(command)
        await self.connection.redis.xadd(
            redis.in_key(job_id), {"m": text, "b": data}, nomkstream=True
        )

    async def _drop_parts(self, job_id: str) -> None:
        await self.connection.redis.delete(*(redis.part_key(job_id, p) for p in redis.PARTS))


async def give_up(client: Client, job_id: str, *, live: bool = False) -> None:
    """Cancel a job whose reader is gone and drop what it made, even while being cancelled."""

    async def _both() -> None:
        await client.cancel(job_id)
        await (client.erase(job_id) if live else client.forget(job_id))

    await asyncio.shield(asyncio.create_task(_both()))
