"""A job's events as its reader gets them, and the end of a job that no worker serves."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from server.broker import messages, redis, videos
from server.broker.attachment import KeptFragments
from server.broker.liveness import STARTING_S, live_workers, starting_workers

_BLOCK_MS = 1000
_NO_WORKER_S = 20.0  # where none starts
_UNCLAIMED_S = 3.0  # how long an admitted live session waits for a worker with room
_READ_BATCH = 4  # events fetched at once


@dataclass(frozen=True)
class Follower:
    """Reads the events of one job. The ending of a job that it fails lasts ``job_ttl_s``."""

    connection: redis.Connection
    job_id: str
    job_ttl_s: int

    async def follow(
        self,
        *,
        consume: bool,
        kept: KeptFragments | None = None,
        resumed: bool = False,
    ) -> AsyncIterator[messages.AnyEvent]:
        """Yield every event of a job, from the first to its ending.

        ``consume`` deletes and acknowledges each fragment once the caller asks for the next
        event, so the worker produces at the reader's pace; ``kept`` are deleted later. A reader
        that ``resumed`` gets what is left of them first. Stops early when the job expires.
        Fails the job when no worker is alive, or no worker has room for a live session. Raises
        `ServiceError` ``internal_error`` when a fragment is missing.
        """
        last, unconfirmed, fragments = b"0", -1, 0
        any_first = resumed
        deadlines = _Deadlines(*map(_GracePeriod, (_NO_WORKER_S, STARTING_S, _UNCLAIMED_S)))
        while True:
            reply = await redis.retry_on_disconnect(
                partial(
                    self.connection.blocking.xread,
                    {redis.out_key(self.job_id): last},
                    count=_READ_BATCH,
                    block=_BLOCK_MS,
                )
            )
            entries = [entry for _, stream in reply for entry in stream]
            if not entries:
                may_continue = partial(self._may_continue, deadlines)
                if not await redis.retry_on_disconnect(may_continue):
                    return
                if unconfirmed >= 0:  # a fail-over may have lost it, and the worker waits for it
                    await self._acknowledge([last] if kept is None else [], unconfirmed)
                    unconfirmed = -1
            for entry, fields in entries:
                last = entry
                event, repeated = messages.unpack_event(fields[b"m"], fields[b"b"]), False
                if isinstance(event, messages.JobFragment) and event.stored is not None:
                    data = await videos.read_fragment(
                        self.connection, self.job_id, event.stored, in_folder=True
                    )
                    if data is None:  # it was deleted
                        return
                    event = event.model_copy(update={"data": data})
                if isinstance(event, messages.JobFragment):
                    if event.index > fragments and not any_first:
                        raise redis.lost()
                    any_first = False
                    repeated = event.index < fragments  # published again after a fail-over
                    fragments = event.index + 1 if not repeated else fragments
                if not repeated:
                    yield event
                if isinstance(event, messages.Ending):
                    return
                if consume and isinstance(event, messages.JobFragment):
                    drop = [last] if kept is None else kept.sent(last, len(event.data))
                    await self._acknowledge(drop, event.index)
                    unconfirmed = event.index

    async def _may_continue(self, deadlines: _Deadlines) -> bool:
        """Fail a job that no worker serves; False once the job is gone and no event can follow."""
        alive = bool(await live_workers(self.connection))
        starting = not alive and bool(await starting_workers(self.connection))
        for deadline, ok in ((deadlines.no_worker, alive or starting), (deadlines.start, alive)):
            if deadline.expired(ok):
                detail = f"no worker was alive for {deadline.limit_s:g} s"
                await self._fail("no_worker", detail)
        # Capacity may have shrunk since the session was admitted: it must not wait for a place.
        if deadlines.unclaimed.expired(not (alive and await self._is_unclaimed_live())):
            await self._fail("busy", f"no worker had room within {_UNCLAIMED_S:g} s")
        return bool(await self.connection.redis.exists(redis.out_key(self.job_id)))

    async def _is_unclaimed_live(self) -> bool:
        """Whether the job is a live session that no worker has claimed yet."""
        job = await self.connection.redis.hmget(redis.job_key(self.job_id), "status", "queue")
        return bool(job == [b"queued", redis.queue_key("live").encode()])

    async def _fail(self, code: str, detail: str) -> None:
        event, _ = messages.pack_event(messages.Failed(code=code, detail=detail))
        await self.connection.end(
            self.job_id,
            None,
            "failed",
            event=event,
            ttl_s=self.job_ttl_s,
            fields={"code": code, "detail": detail},
        )

    async def _acknowledge(self, drop: list[bytes], index: int) -> None:
        text, data = messages.pack_command(messages.Ack(index=index))
        fields = {"m": text, "b": data}
        client = self.connection.redis
        if drop:
            await redis.retry_on_disconnect(partial(client.xdel, redis.out_key(self.job_id), *drop))
        # NOMKSTREAM: a job that has ended has no command stream, and must not get a new one.
        append = partial(client.xadd, redis.in_key(self.job_id), fields, nomkstream=True)
        await redis.retry_on_disconnect(append)


class _GracePeriod:
    """Expires when a condition has been false for ``limit_s`` seconds without a break."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since_s: float | None = None

    def expired(self, ok: bool) -> bool:
        """Report whether the condition holds now; True once it has failed for too long."""
        now_s = time.monotonic()
        if ok:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        return self._since_s is not None and now_s - self._since_s > self.limit_s


@dataclass(frozen=True)
class _Deadlines:
    no_worker: _GracePeriod
    start: _GracePeriod
    unclaimed: _GracePeriod
