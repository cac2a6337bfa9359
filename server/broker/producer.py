"""The API's half of the broker: hand a job in, follow it, cancel it, look things up."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from server import traces
from server.api.protocol import AvatarView, JobView, ModelList, ModelView
from server.broker import messages, redis
from server.broker.liveness import live_workers
from server.errors import ServiceError

_TICK_MS = 1000
_NO_WORKER_S = 20.0  # a restarting worker is waited for this long
_UNCLAIMED_S = 3.0  # a live session that was let in waits no longer for the worker that has room
_FEW = 4  # fragments fetched at once
_FORGET_S = 600
_MAX_COMMANDS = 20_000  # that no snapshot holds yet


@dataclass(frozen=True)
class JobProducer:
    """``max_jobs`` places in the queue; what is not read is gone after ``job_ttl_s``.

    ``reader`` is this process's name among the readers that live; without one, what is asked for
    is made whether it is read or not. Jobs and avatars are those of ``owner``; what is another's
    is as if it were not there.
    """

    connection: redis.Connection
    max_jobs: int
    job_ttl_s: int
    reader: str = ""
    owner: str = ""

    async def submit(self, request: messages.AnyRequest, parts: Mapping[str, bytes]) -> str:
        """Queue a job with its uploads (`redis.PARTS`) and return its id.

        Live sessions, videos and avatars each have a queue of their own: of ``max_jobs`` places,
        and for live sessions no more than the workers say that they can hold.
        Raises `ServiceError` ``busy`` without a free place or memory, ``no_worker`` when no
        worker lives.
        """
        workers = await live_workers(self.connection)
        if not workers:
            raise ServiceError("no_worker", "no worker is connected yet; try again in a moment")
        places = self.max_jobs
        if request.kind == "live":
            places = min(places, sum(beat.live_places for beat in workers.values()))
        job_id = secrets.token_hex(12)
        event, _ = messages.pack_event(messages.Queued())
        facts = {
            "trace": traces.here(),
            "reader": "" if request.keep else self.reader,
            "owner": self.owner,
        }
        keys = [redis.queue_key(request.kind), redis.job_key(job_id), redis.out_key(job_id)]
        arguments: list[Any] = [
            job_id,
            messages.pack_request(request.model_copy(update=facts)),
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
            taken = bool(await redis.with_eviction(self.connection, hand_in, self.owner))
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
        A job fails for which no worker lives, and a live session that no worker has room for.
        """
        last = b"0"
        alone, unclaimed = _Patience(_NO_WORKER_S), _Patience(_UNCLAIMED_S)
        while True:
            reply = await redis.retry_on_disconnect(
                partial(
                    self.connection.blocking.xread,
                    {redis.out_key(job_id): last},
                    count=_FEW,
                    block=_TICK_MS,
                )
            )
            entries = [entry for _, some in reply for entry in some]
            if not entries and not await self._goes_on(job_id, alone, unclaimed):
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
        """End the job now; False when it had ended before, or never was.

        Its worker hears of it when it next renews its lease.
        """
        event, _ = messages.pack_event(messages.Cancelled())
        return await self.connection.end(job_id, None, "cancelled", event, _FORGET_S)

    async def forget(self, job_id: str) -> None:
        """Drop a job's video; its status stays for a while."""
        await self.connection.redis.delete(redis.out_key(job_id))
        await self.connection.redis.expire(redis.job_key(job_id), _FORGET_S)

    async def erase(self, job_id: str) -> None:
        """Drop all of a live session that has ended."""
        await redis.drop_video(self.connection, job_id)

    async def send_command(self, job_id: str, number: int, command: messages.LiveCommand) -> bool:
        """Say something to a live session; False when it has ended.

        ``number`` counts a session's commands from 1: one that is said again is heard once.
        Raises `ServiceError` ``busy`` when there is no memory for it, ``too_large`` when too many
        wait.
        """
        text, data = messages.pack_command(command)
        keys = [redis.job_key(job_id), redis.in_key(job_id)]
        arguments: list[Any] = [number, text, data, self.job_ttl_s, _MAX_COMMANDS]
        write = partial(self.connection.send_command, keys, arguments)
        told = await redis.with_eviction(self.connection, write, None)
        if told < 0:
            raise ServiceError(
                "too_large", f"{_MAX_COMMANDS} messages wait to be dealt with; no more may"
            )
        return bool(told)

    async def view(self, job_id: str) -> JobView | None:
        """How a job stands, or ``None`` for one that is not known (any more)."""
        facts = await self.connection.redis.hgetall(redis.job_key(job_id))
        if not facts:
            return None
        request = messages.unpack_request(facts[b"request"])
        if request.kind != "animate" or request.owner != self.owner:
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
        if text is None:
            return False
        request = messages.unpack_request(text)
        if not request.keep or request.owner != self.owner:
            return False
        return bool(await self.connection.redis.exists(redis.out_key(job_id)))

    async def models(self) -> ModelList:
        """What the live workers have loaded, in the order that they name it."""
        found: dict[str, ModelView] = {}
        for beat in (await live_workers(self.connection)).values():
            for model in beat.models:
                found.setdefault(model.name, model)
        return ModelList(models=list(found.values()), default=next(iter(found), None))

    async def avatar(self, avatar_id: str) -> AvatarView | None:
        key = redis.avatar_key(avatar_id)
        text, owner = await self.connection.redis.hmget(key, "view", "owner")
        if text is None or owner.decode() != self.owner:
            return None
        return AvatarView.model_validate_json(text)

    async def delete_avatar(self, avatar_id: str) -> bool:
        """False when there was none."""
        if await self.avatar(avatar_id) is None:
            return False
        await self.connection.redis.zrem(redis.avatars_key(self.owner), avatar_id)
        return bool(await redis.drop_avatar(self.connection, avatar_id))

    async def _goes_on(self, job_id: str, alone: _Patience, unclaimed: _Patience) -> bool:
        """Looked at when no event came for a while; False when none will come any more."""
        attended = bool(await live_workers(self.connection))
        if alone.over(attended):
            await self._fail(job_id, "no_worker", f"no worker lived for {_NO_WORKER_S:g} s")
        # Places may have become fewer since it was let in: it must not wait until one is free.
        if unclaimed.over(not (attended and await self._waits_live(job_id))):
            await self._fail(job_id, "busy", f"no worker had room within {_UNCLAIMED_S:g} s")
        return bool(await self.connection.redis.exists(redis.out_key(job_id)))

    async def _waits_live(self, job_id: str) -> bool:
        """Whether it is a live session that no worker has claimed yet."""
        facts = await self.connection.redis.hmget(redis.job_key(job_id), "status", "queue")
        return bool(facts == [b"queued", redis.queue_key("live").encode()])

    async def _fail(self, job_id: str, code: str, detail: str) -> None:
        event, _ = messages.pack_event(messages.Failed(code=code, detail=detail))
        facts = ["code", code, "detail", detail]
        await self.connection.end(job_id, None, "failed", event, self.job_ttl_s, *facts)

    async def _consumed(self, job_id: str, entry: bytes, index: int) -> None:
        await self.connection.redis.xdel(redis.out_key(job_id), entry)
        # NOMKSTREAM: a job that has ended has no command stream, and must not get one again.
        text, data = messages.pack_command(messages.Read(index=index))
        await self.connection.redis.xadd(
            redis.in_key(job_id), {"m": text, "b": data}, nomkstream=True
        )

    async def _drop_parts(self, job_id: str) -> None:
        await self.connection.redis.delete(*(redis.part_key(job_id, p) for p in redis.PARTS))


class _Patience:
    """How long a reader has waited for something to be good again."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: float | None = None

    def over(self, good: bool) -> bool:
        """Told now and then whether it is good; True once it has not been for too long."""
        now_s = time.monotonic()
        if good:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        return self._since_s is not None and now_s - self._since_s > self._limit_s


async def give_up(client: JobProducer, job_id: str, *, live: bool = False) -> None:
    """Cancel a job whose reader is gone and drop what it made, even while being cancelled."""

    async def _both() -> None:
        await client.cancel(job_id)
        await (client.erase(job_id) if live else client.forget(job_id))

    await asyncio.shield(asyncio.create_task(_both()))
