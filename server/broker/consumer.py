"""The workers' half of the broker: be seen, claim jobs, publish, end them; keep avatars."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from server.api.protocol import AvatarView
from server.broker import liveness, messages, redis

LEASE_S = 1.0
SUSPECT_WAIT_S = 20.0  # for a worker with nothing else in hand
_WORKER_TTL_S = 4
_TICK_MS = 250
_LISTEN_MS = 1000
_LOOK_AT = 10  # leases that have ended, at a time
_FORGET_MS = 60_000  # an idle worker's name in the consumer group

START = "0-0"


@dataclass(frozen=True)
class Claim:
    """A job that this worker now has in hand.

    ``token`` is the number of this claim, ``events`` how many were published before it. Of the
    claims in a row (this one included) that brought none, ``tries`` counts this and those whose
    worker died, ``late`` those that were taken from a worker that lives, but did not renew its
    leases in time. ``saved`` is the snapshot that goes with the last event.
    """

    job_id: str
    request: messages.AnyRequest
    entry: str
    token: int
    events: int
    tries: int
    saved: bytes | None
    late: int = 0

    @property
    def suspect(self) -> bool:
        """Whether the worker that had it before died without getting on with it."""
        return self.tries > 1


@dataclass(frozen=True)
class Limits:
    """How long and how many: see `server.settings`."""

    job_ttl_s: int
    avatar_ttl_s: int
    max_avatars: int
    max_videos: int


@dataclass(frozen=True)
class JobConsumer:
    """One worker's access, under its id."""

    connection: redis.Connection
    worker_id: str
    limits: Limits

    async def join(self) -> None:
        """Make sure that the queues' consumer groups exist, and forget workers long gone."""
        for kind in redis.QUEUES:
            queue = redis.queue_key(kind)
            try:
                await self.connection.redis.xgroup_create(queue, redis.GROUP, "0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            for known in await self.connection.redis.xinfo_consumers(queue, redis.GROUP):
                if known["pending"] == 0 and known["idle"] > _FORGET_MS:
                    await self.connection.redis.xgroup_delconsumer(
                        queue, redis.GROUP, known["name"]
                    )

    async def beat(self, beat: messages.Beat) -> None:
        """Say that this worker lives; due again within some seconds."""
        keys = [redis.WORKERS, redis.worker_key(self.worker_id)]
        await self.connection.beat(keys, [self.worker_id, beat.model_dump_json(), _WORKER_TTL_S])

    async def leave(self) -> None:
        """Stop being counted; jobs in hand may be finished, or `release`."""
        await liveness.deregister(self.connection, self.worker_id)

    async def others(self) -> list[messages.Beat]:
        """What the other workers that live say of themselves."""
        workers = await liveness.live_workers(self.connection)
        return [beat for name, beat in workers.items() if name != self.worker_id]

    async def claim(self, kind: str) -> Claim | None:
        """The next queued job; ``None`` when none came within a quarter of a second."""
        queue = redis.queue_key(kind)
        try:
            reply = await self.connection.blocking.xreadgroup(
                redis.GROUP, self.worker_id, {queue: ">"}, count=1, block=_TICK_MS
            )
        except ResponseError as error:
            await self._rejoin(error)
            return None
        for _, entries in reply:
            for entry, fields in entries:
                return await self._claim(queue, entry, fields)
        return None

    async def reclaim(self, kind: str, *, alone: bool) -> Claim | None:
        """A running job whose lease has ended, if there is any.

        A job whose last claim ended with its worker and brought nothing is suspect: it is for
        workers that are ``alone``, until `SUSPECT_WAIT_S` have passed.
        """
        queue = redis.queue_key(kind)
        lease_ms = round(LEASE_S * 1000)
        try:
            held = await self.connection.redis.xpending_range(
                queue, redis.GROUP, "-", "+", _LOOK_AT, idle=lease_ms
            )
            for one in held:
                count = await self._count_as(one)
                waited_ms = one["time_since_delivered"] % liveness.RELEASED_MS
                tries = await self._tries(queue, one["message_id"]) + (count == "tries")
                if tries > 1 and not alone and waited_ms < SUSPECT_WAIT_S * 1000:
                    continue
                # Only one of those that see it gets it.
                entries = await self.connection.redis.xclaim(
                    queue, redis.GROUP, self.worker_id, lease_ms, [one["message_id"]]
                )
                for entry, fields in entries:
                    return await self._claim(queue, entry, fields, count)
        except ResponseError as error:
            await self._rejoin(error)
        return None

    async def _tries(self, queue: str, entry: bytes) -> int:
        """Claims of a job so far that brought nothing."""
        for _, fields in await self.connection.redis.xrange(queue, entry, entry):
            job = redis.job_key(fields[b"job"].decode())
            return int(await self.connection.redis.hget(job, "tries") or 0)
        return 0

    async def _count_as(self, held: dict[str, Any]) -> str:
        """``late``, when its lease ran out with a worker that lives; else ``tries``."""
        if held["time_since_delivered"] >= liveness.RELEASED_MS:  # let go, or its worker was buried
            return "tries"
        lives = await liveness.is_live(self.connection, held["consumer"].decode())
        return "late" if lives else "tries"

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Keep the leases; False for each job that has ended, or is another worker's now."""
        return await self._lease(claims, 0)

    async def release(self, claims: Sequence[Claim]) -> None:
        """End the leases, so that another worker goes on from the snapshots at once."""
        await self._lease(claims, liveness.RELEASED_MS)

    async def is_read(self, claim: Claim) -> bool:
        """Whether the process lives that reads what is made, if only one can."""
        reader = claim.request.reader
        return not reader or bool(await self.connection.redis.exists(redis.reader_key(reader)))

    async def drop(self, claim: Claim) -> None:
        """Nothing stays of a job that has ended, and that nobody will ask for."""
        await redis.drop_video(self.connection, claim.job_id)

    async def part(self, job_id: str, part: str) -> bytes | None:
        """An upload of the job (`redis.PARTS`)."""
        return await self._get(redis.part_key(job_id, part))

    async def commands(
        self, job_id: str, after: str
    ) -> AsyncIterator[list[tuple[str, messages.AnyCommand]]]:
        """What the readers of a job have said since the entry ``after``, in order, for ever.

        Each comes with its entry. The first list holds all that is there already, and may be
        empty; commands stay until `publish` says that a snapshot holds them.
        """
        last, block = after, None
        while True:
            reply = await self.connection.blocking.xread({redis.in_key(job_id): last}, block=block)
            entries = [entry for _, some in reply for entry in some]
            if entries:
                last = entries[-1][0].decode()
            if entries or block is None:
                yield [
                    (entry.decode(), messages.unpack_command(fields[b"m"], fields[b"b"]))
                    for entry, fields in entries
                ]
            block = _LISTEN_MS

    async def publish(
        self, claim: Claim, number: int, event: messages.Progress, saved: bytes, held: str
    ) -> bool:
        """Publish the job's event of that number together with the snapshot after it.

        ``held`` is the last command that the snapshot holds. False when the job does not run
        any more, or elsewhere. Raises `ServiceError` ``busy`` when there is no memory for it.
        """
        text, data = messages.pack_event(event)
        facts: list[Any] = []
        if isinstance(event, messages.Started):
            facts = ["total_s", event.total_s or 0]
        elif isinstance(event, messages.Fragment) and event.frames:
            facts = ["duration_s", event.start_s + event.duration_s]
            facts += ["frames", event.first_frame + event.frames]
        make_key = (redis.job_key, redis.out_key, redis.in_key, redis.state_key)
        keys = [make(claim.job_id) for make in make_key]
        ttl_s = self.limits.job_ttl_s
        arguments = [claim.token, number, text, data, ttl_s, saved, _after(held), *facts]
        write = partial(self.connection.publish, keys, arguments)
        return bool(await redis.with_eviction(self.connection, write, claim.request.owner))

    async def end(self, claim: Claim, ending: messages.Ending) -> None:
        """Say how the job ended, and give back what it held; not if it is another worker's."""
        event, _ = messages.pack_event(ending)
        status, facts = "done", list[Any]()
        if isinstance(ending, messages.Failed):
            status, facts = "failed", ["code", ending.code, "detail", ending.detail]
        elif isinstance(ending, messages.Done):
            facts = ["frames", ending.frames, "duration_s", ending.duration_s]
        ttl_s = self.limits.job_ttl_s
        ended = await self.connection.end(claim.job_id, claim.token, status, event, ttl_s, *facts)
        if ended and claim.request.keep:
            ranking = redis.videos_key(claim.request.owner)
            for job_id in await self._keep(ranking, claim.job_id, self.limits.max_videos):
                await redis.drop_video(self.connection, job_id)

    async def save_avatar(self, avatar: AvatarView, reference: bytes, owner: str = "") -> None:
        """Keep a prepared portrait; the owner's longest unused goes when there are too many."""
        key = redis.avatar_key(avatar.avatar_id)
        fields = {"view": avatar.model_dump_json(), "reference": reference, "owner": owner}
        write = partial(self.connection.redis.hset, key, mapping=fields)
        await redis.with_eviction(self.connection, write, owner)
        await self.connection.redis.expire(key, self.limits.avatar_ttl_s)
        await self.connection.redis.sadd(redis.OWNERS, owner)
        ranking = redis.avatars_key(owner)
        for old in await self._keep(ranking, avatar.avatar_id, self.limits.max_avatars):
            await redis.drop_avatar(self.connection, old)

    async def load_avatar(self, avatar_id: str, job_id: str) -> bytes | None:
        """The reference of `save_avatar`, now the most recently used.

        The job keeps a copy, so that whoever takes it over finds it when the avatar is gone.
        """
        own = redis.part_key(job_id, "reference")
        if (copied := await self._get(own)) is not None:
            return copied
        key = redis.avatar_key(avatar_id)
        reference, owner = await self.connection.redis.hmget(key, "reference", "owner")
        if reference is None:
            return None
        owner = (owner or b"").decode()
        await self.connection.redis.expire(key, self.limits.avatar_ttl_s)
        await self.connection.redis.zadd(redis.avatars_key(owner), {avatar_id: time.time()})
        write = partial(self.connection.redis.set, own, reference, ex=self.limits.job_ttl_s)
        await redis.with_eviction(self.connection, write, owner)
        return bytes(reference)

    async def _claim(
        self, queue: str, entry: bytes, fields: dict[bytes, bytes], count: str = "tries"
    ) -> Claim | None:
        job_id = fields[b"job"].decode()
        first, _ = messages.pack_command(messages.Read(index=-1))
        facts = await self.connection.claim(
            [queue, redis.job_key(job_id), redis.in_key(job_id)],
            [entry, redis.GROUP, first, self.limits.job_ttl_s, count],
        )
        if facts is None:
            return None
        request, token, events, tries, late = facts
        # Nobody else can change it now: the token says whose the job is.
        saved = await self._get(redis.state_key(job_id))
        return Claim(
            job_id,
            messages.unpack_request(request),
            entry.decode(),
            int(token),
            int(events),
            int(tries),
            saved,
            int(late),
        )

    async def _lease(self, claims: Sequence[Claim], idle_ms: int) -> list[bool]:
        if not claims:
            return []
        keys = list[str]()
        arguments: list[Any] = [redis.GROUP, self.worker_id, idle_ms]
        for claim in claims:
            keys += [redis.queue_key(claim.request.kind), redis.job_key(claim.job_id)]
            arguments += [claim.entry, claim.token]
        return [bool(kept) for kept in await self.connection.lease(keys, arguments)]

    async def _rejoin(self, error: ResponseError) -> None:
        """A server that was started anew knows no group."""
        if "NOGROUP" not in str(error):
            raise error
        await self.join()

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


def _after(entry: str) -> str:
    """The least id beyond a stream entry's."""
    milliseconds, _, number = entry.partition("-")
    return f"{milliseconds}-{int(number) + 1}"
