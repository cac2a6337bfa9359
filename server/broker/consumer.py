"""The workers' half of the broker: heartbeats, claims, leases, publishing, stored avatars."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import ResponseError

from server.api.protocol import AvatarView
from server.broker import avatars, liveness, messages, redis, reservations
from server.broker.amount import NOTHING, Amount, amount
from server.broker.reservations import UNLIMITED, Limits

log = logging.getLogger("fada.worker")

LEASE_S = 1.0
QUARANTINE_S = 20.0  # how long a suspected poison job is reserved for idle workers
_WORKER_TTL_S = 4
_CLAIM_BLOCK_MS = 250
_COMMANDS_BLOCK_MS = 1000
_RECLAIM_BATCH = 10  # expired leases inspected at a time
_ENDED_LIVE_TTL_S = 60  # for a client that still reads, or comes back
_CONSUMER_TTL_MS = 60_000  # an idle worker's name in the consumer group

START = "0-0"

_OTHER_FOLDER = "its files are in a folder that this worker does not share"

_Counter = Literal["attempts", "lease_timeouts"]


@dataclass(frozen=True)
class Claim:
    """A job that this worker has claimed.

    ``entry`` is the job's entry in its queue, ``token`` the number of this claim, ``events`` the
    number of events published before it and ``snapshot`` the one after the last of them.
    Both counters restart with every published event: ``attempts`` counts this claim and earlier
    ones whose worker died, ``lease_timeouts`` the claims taken from workers that were alive but
    did not renew in time. ``stored_bytes`` is what is stored of a kept video.
    """

    job_id: str
    request: messages.AnyRequest
    entry: str
    _: KW_ONLY
    token: int
    events: int
    attempts: int
    snapshot: bytes | None
    lease_timeouts: int = 0
    stored_bytes: int = 0

    @property
    def suspected_poison(self) -> bool:
        """Whether the previous worker died without making progress."""
        return self.attempts > 1


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept, how many and for how many seconds; see `server.settings`.

    An owner's avatars may take ``avatar_share`` of the room that others leave.
    """

    job_ttl_s: int
    avatar_ttl_s: int
    max_avatars: int
    max_videos: int
    avatar_share: float = 1.0


@dataclass(frozen=True)
class JobConsumer:
    """One worker's access to the broker.

    Jobs in a format that a worker of ``format`` cannot read are left to others.
    """

    connection: redis.Connection
    worker_id: str
    retention: Retention
    _: KW_ONLY
    limits: Limits = UNLIMITED
    format: int = messages.FORMAT
    _left: deque[str] = field(default_factory=lambda: deque(maxlen=256))  # logged once each

    async def join(self) -> None:
        """Create the queues' consumer groups if missing, and remove workers long idle."""
        for kind in redis.QUEUES:
            queue = redis.queue_key(kind)
            try:
                await self.connection.redis.xgroup_create(queue, redis.GROUP, "0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            for consumer in await self.connection.redis.xinfo_consumers(queue, redis.GROUP):
                if consumer["pending"] == 0 and consumer["idle"] > _CONSUMER_TTL_MS:
                    await self.connection.redis.xgroup_delconsumer(
                        queue, redis.GROUP, consumer["name"]
                    )

    async def started(self) -> None:
        """Readers no longer wait for this worker's start: it has sent its first heartbeat."""
        await liveness.end_start(self.connection, self.worker_id)

    async def heartbeat(self, heartbeat: messages.Heartbeat) -> None:
        """Report this worker alive for the next `_WORKER_TTL_S` seconds."""
        keys = [redis.WORKERS, redis.worker_key(self.worker_id)]
        stamped = heartbeat.model_copy(update={"format": self.format, "folder": self._folder})
        arguments = [self.worker_id, stamped.model_dump_json(), _WORKER_TTL_S]
        await self.connection.run("heartbeat", keys, arguments)

    async def leave(self) -> None:
        """Deregister this worker. It may still finish or `release` the jobs it holds."""
        await liveness.deregister(self.connection, self.worker_id)

    async def other_workers(self) -> dict[str, messages.Heartbeat]:
        """The last heartbeats of the other live workers, by id."""
        workers = await liveness.live_workers(self.connection)
        return {name: one for name, one in workers.items() if name != self.worker_id}

    async def claim(self, kind: str) -> Claim | None:
        """Claim the next queued job; ``None`` if none arrives within a quarter of a second."""
        queue = redis.queue_key(kind)
        try:
            reply = await self.connection.blocking.xreadgroup(
                redis.GROUP, self.worker_id, {queue: ">"}, count=1, block=_CLAIM_BLOCK_MS
            )
        except ResponseError as error:
            await self._rejoin(error)
            return None
        for _, entries in reply:
            for entry, fields in entries:
                return await self._claim(queue, entry, fields)
        return None

    async def reclaim(self, kind: str, *, idle: bool) -> Claim | None:
        """Claim a running job whose lease has expired; ``None`` if there is none.

        A suspected poison job is left to workers that are ``idle`` (hold no other job) until
        `QUARANTINE_S` have passed, so that it cannot take other jobs down with its worker.
        """
        queue = redis.queue_key(kind)
        lease_ms = round(LEASE_S * 1000)
        try:
            expired = await self.connection.redis.xpending_range(
                queue, redis.GROUP, "-", "+", _RECLAIM_BATCH, idle=lease_ms
            )
            for pending in expired:
                counter = await self._counter(pending)
                waited_ms = pending["time_since_delivered"] % liveness.RELEASED_MS
                job_id, attempts, obstacle = await self._progress(queue, pending["message_id"])
                if obstacle:
                    self._leave_to_others(job_id, obstacle)
                    continue
                attempts += counter == "attempts"
                if attempts > 1 and not idle and waited_ms < QUARANTINE_S * 1000:
                    continue
                # Of several workers that see the same expired lease, one gets it.
                entries = await self.connection.redis.xclaim(
                    queue, redis.GROUP, self.worker_id, lease_ms, [pending["message_id"]]
                )
                for entry, fields in entries:
                    return await self._claim(queue, entry, fields, counter=counter)
        except ResponseError as error:
            await self._rejoin(error)
        return None

    async def _progress(self, queue: str, entry: bytes) -> tuple[str, int, str]:
        """A job's id, how many claims have ended without progress, and what keeps us from it."""
        for _, fields in await self.connection.redis.xrange(queue, entry, entry):
            job_id = fields[b"job"].decode()
            attempts, written, folder = await self.connection.redis.hmget(
                redis.job_key(job_id), "attempts", "format", "folder"
            )
            obstacle = self._obstacle(int(written or messages.UNVERSIONED))
            if folder and folder.decode() != self._folder:
                obstacle = _OTHER_FOLDER
            return job_id, int(attempts or 0), obstacle
        return "", 0, ""

    def _obstacle(self, written: int) -> str:
        if messages.reads(self.format, written):
            return ""
        return f"its format = {written}, expected {self.format - 1} or {self.format}"

    def _leave_to_others(self, job_id: str, obstacle: str) -> None:
        if job_id not in self._left:
            self._left.append(job_id)
            log.warning("job %s: left to other workers: %s", job_id, obstacle)

    @property
    def _folder(self) -> str:
        """The token of the folder that this worker shares, if any."""
        return "" if self.connection.folder is None else self.connection.folder.token

    async def _counter(self, pending: dict[str, Any]) -> _Counter:
        """What to count a reclaim as: a lease timeout if the job's worker is alive."""
        if pending["time_since_delivered"] >= liveness.RELEASED_MS:  # released, or its worker died
            return "attempts"
        alive = await liveness.is_live(self.connection, pending["consumer"].decode())
        return "lease_timeouts" if alive else "attempts"

    async def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Renew the leases; False for each job that has ended or that another worker holds."""
        return await self._lease(claims, 0)

    async def release(self, claims: Sequence[Claim]) -> None:
        """End the leases, so that other workers can resume from the snapshots at once."""
        await self._lease(claims, liveness.RELEASED_MS)

    def can_move(self, claim: Claim, workers: Sequence[messages.Heartbeat]) -> bool:
        """Whether one of ``workers`` can go on with the job: some need the shared folder."""
        needs_folder = claim.request.in_folder or claim.request.uploads.folder_bytes > 0
        return any(not needs_folder or worker.folder == self._folder for worker in workers)

    async def has_reader(self, claim: Claim) -> bool:
        """Whether the job's reader is alive; True if any process may read the job."""
        reader = claim.request.reader
        return not reader or bool(await self.connection.redis.exists(redis.reader_key(reader)))

    async def drop(self, claim: Claim) -> None:
        """Delete an ended job whose output has no reader."""
        await redis.drop_video(self.connection, claim.job_id)

    async def part(self, job_id: str, part: str) -> bytes | None:
        """An upload of the job, one of `redis.PARTS`."""
        folder = self.connection.folder
        blob = None if folder is None else await folder.read(job_id, part)
        return blob if blob is not None else await self._get(redis.part_key(job_id, part))

    async def store(self, claim: Claim, data: bytes, at: int) -> tuple[str, int]:
        """Write a fragment to byte ``at`` of the claim's file in the folder.

        Returns `JobFragment.stored`. Raises `ServiceError` ``busy`` for a full disk.
        """
        assert self.connection.folder is not None  # or the job would not have been claimed
        name = messages.video_file(claim.token)
        await self.connection.folder.write(claim.job_id, name, data, at=at)
        return f"{at}-{claim.token}", len(data)

    async def commands(
        self, job_id: str, after: str
    ) -> AsyncIterator[list[tuple[str, messages.AnyCommand]]]:
        """Yield the commands after the entry ``after``, each with its entry, in order, for ever.

        The first list holds the commands that already wait, and may be empty. Commands stay
        in the stream until `publish` stores a snapshot that includes them.
        """
        last, block = after, None
        while True:
            read = partial(
                self.connection.blocking.xread, {redis.in_key(job_id): last}, block=block
            )
            reply = await redis.retry_on_disconnect(read)
            entries = [entry for _, stream in reply for entry in stream]
            if entries:
                last = entries[-1][0].decode()
            if entries or block is None:
                yield [
                    (entry.decode(), messages.unpack_command(fields[b"m"], fields[b"b"]))
                    for entry, fields in entries
                ]
            block = _COMMANDS_BLOCK_MS

    async def publish(
        self,
        claim: Claim,
        number: int,
        event: messages.Progress,
        *,
        snapshot: bytes,
        last_command: str,
        stored_bytes: int = 0,
    ) -> bool:
        """Publish the job's event ``number`` together with the snapshot after it.

        ``last_command`` is the entry of the last command that the snapshot includes,
        ``stored_bytes`` what is then stored of a kept video. Returns
        False when the job has ended or another worker holds it. Raises `ServiceError` ``busy``
        when memory is full, ``internal_error`` when an event before it was lost. Publishing the
        last event again has no effect, unless a fail-over has lost it.
        """
        text, data = messages.pack_event(event)
        fields: dict[str, Any] = {"format": self.format}
        if isinstance(event, messages.Started):
            fields |= {"total_s": event.total_s or 0}
            if event.warnings:
                fields |= {"warnings": "\n".join(event.warnings)}
        elif isinstance(event, messages.JobFragment) and event.frames:
            fields |= {
                "duration_s": event.start_s + event.duration_s,
                "frames": event.first_frame + event.frames,
            }
        if claim.request.kind == "live":
            fields |= _reached(event)
        if stored_bytes:
            fields |= {"stored": stored_bytes}
        make_key = (redis.job_key, redis.out_key, redis.in_key, redis.state_key)
        keys = [*(make(claim.job_id) for make in make_key), redis.EXPIRIES]
        ttl_s = self.retention.job_ttl_s
        arguments = [claim.job_id, claim.token, number, text, data, ttl_s, snapshot]
        arguments.append(_next_id(last_command))
        arguments += redis.flatten(fields)
        write = partial(self.connection.run, "publish", keys, arguments)
        published = await redis.with_eviction(self.connection, write, claim.request.owner)
        if published < 0:
            raise redis.lost()
        return bool(published)

    async def end(self, claim: Claim, ending: messages.Ending) -> None:
        """End the job and free what it held, unless another worker holds it."""
        event, _ = messages.pack_event(ending)
        status, fields, kept = "done", dict[str, Any](), NOTHING
        ttl_s = self.retention.job_ttl_s
        if claim.request.kind == "live":
            ttl_s = min(ttl_s, _ENDED_LIVE_TTL_S)
        if isinstance(ending, messages.Failed):
            status, fields = "failed", {"code": ending.code, "detail": ending.detail}
        elif isinstance(ending, messages.JobDone):
            fields = {"frames": ending.frames, "duration_s": ending.duration_s}
            if ending.init:
                fields |= {"init": ending.init, "index": ending.index}
                sizes = sum(size for _, size in messages.unpack_index(ending.index))
                kept = Amount(len(ending.init)) + amount(sizes, in_folder=claim.request.in_folder)
        ended = await self.connection.end(
            claim.job_id,
            claim.token,
            status,
            event=event,
            ttl_s=ttl_s,
            kept=kept,
            fields=fields,
        )
        if ended and claim.request.keep and status == "failed":
            await self.connection.redis.xtrim(redis.out_key(claim.job_id), maxlen=1)
        elif ended and claim.request.keep:
            ranking = redis.videos_key(claim.request.owner)
            limit = self.retention.max_videos
            for job_id in await avatars.rank(self.connection, ranking, claim.job_id, limit=limit):
                await redis.drop_video(self.connection, job_id)

    async def reserved_video(self, claim: Claim) -> int:
        """How many bytes are reserved for the job's video."""
        entry = await self.connection.redis.hget(redis.RESERVED, claim.job_id)
        if entry is None:
            return 0
        _, in_redis, in_folder, _ = entry.decode().split(" ", 3)
        uploads = claim.request.uploads
        if claim.request.in_folder:
            return int(in_folder) - uploads.folder_bytes
        return int(in_redis) - uploads.redis_bytes

    async def reserve_video(self, claim: Claim, video_bytes: int) -> None:
        """Change what is reserved for the job to its uploads and so many bytes of video.

        Raises `ServiceError` ``busy`` or ``too_large`` when that does not fit.
        """
        await reservations.reserve(
            self.connection,
            claim.job_id,
            claim.request.uploads + amount(video_bytes, in_folder=claim.request.in_folder),
            limits=self.limits,
            ttl_s=self.retention.job_ttl_s,
            owner=claim.request.owner,
        )

    async def save_avatar(self, avatar: AvatarView, reference: bytes, owner: str = "") -> None:
        """Store a prepared portrait; the owner's least recently used go beyond the limit."""
        await avatars.save_avatar(
            self.connection,
            avatar,
            reference,
            owner=owner,
            format=self.format,
            ttl_s=self.retention.avatar_ttl_s,
            limit=self.retention.max_avatars,
            limits=self.limits,
            share=self.retention.avatar_share if owner else 1.0,
        )

    async def load_avatar(self, avatar_id: str, job_id: str) -> bytes | None:
        """The reference that `save_avatar` stored, marked as most recently used.

        The job keeps a copy, so that a worker that reclaims it does not depend on the avatar.
        Raises `ServiceError` ``not_found`` for one in a format that this worker cannot read.
        """
        own = redis.part_key(job_id, "reference")
        if (copied := await self._get(own)) is not None:
            return copied
        found = await avatars.load_avatar(
            self.connection, avatar_id, format=self.format, ttl_s=self.retention.avatar_ttl_s
        )
        if found is None:
            return None
        reference, owner = found
        write = partial(self.connection.redis.set, own, reference, ex=self.retention.job_ttl_s)
        await redis.with_eviction(self.connection, write, owner)
        return reference

    async def _claim(
        self,
        queue: str,
        entry: bytes,
        fields: dict[bytes, bytes],
        *,
        counter: _Counter = "attempts",
    ) -> Claim | None:
        job_id = fields[b"job"].decode()
        first, _ = messages.pack_command(messages.Ack(index=-1))
        job = await self.connection.run(
            "claim",
            [queue, redis.job_key(job_id), redis.in_key(job_id)],
            [
                *(entry, redis.GROUP, first, self.retention.job_ttl_s, counter, self.worker_id),
                *(self.format - 1, self.format, liveness.RELEASED_MS, self._folder),
            ],
        )
        if job is None:
            return None
        if isinstance(job, int):
            self._leave_to_others(job_id, self._obstacle(job) if job else _OTHER_FOLDER)
            return None
        request, token, events, attempts, lease_timeouts, stored = job
        return Claim(
            job_id,
            messages.unpack_request(request),
            entry.decode(),
            token=int(token),
            events=int(events),
            attempts=int(attempts),
            # No race: with the new token, only this worker can replace it.
            snapshot=await self._get(redis.state_key(job_id)),
            lease_timeouts=int(lease_timeouts),
            stored_bytes=int(stored or 0),
        )

    async def _lease(self, claims: Sequence[Claim], idle_ms: int) -> list[bool]:
        if not claims:
            return []
        keys = list[str]()
        arguments: list[Any] = [redis.GROUP, self.worker_id, idle_ms]
        for claim in claims:
            keys += [redis.queue_key(claim.request.kind), redis.job_key(claim.job_id)]
            arguments += [claim.entry, claim.token]
        return [bool(held) for held in await self.connection.run("lease", keys, arguments)]

    async def _rejoin(self, error: ResponseError) -> None:
        """Recreate the consumer groups after a restart of the server.

        Raises redis's ``ConnectionError`` where the server has just become a replica.
        """
        if "UNBLOCKED" in str(error):
            raise NotConnected(str(error)) from error
        if "NOGROUP" not in str(error):
            raise error
        await self.join()

    async def _get(self, key: str) -> bytes | None:
        value = await self.connection.redis.get(key)
        return None if value is None else bytes(value)


def _reached(event: messages.Progress) -> dict[str, Any]:
    """What of a live session has been made (`server.broker.attachment.Attachment`)."""
    if isinstance(event, messages.Started):
        return {"fragments": 0, "consumed": 0}
    if isinstance(event, messages.JobFragment):
        return {"fragments": event.index + 1, "consumed": event.consumed_bytes}
    return {"consumed": event.consumed_bytes}


def _next_id(entry: str) -> str:
    """The smallest stream id after ``entry``."""
    milliseconds, _, number = entry.partition("-")
    return f"{milliseconds}-{int(number) + 1}"
