"""A worker in the queues' consumer groups: it claims jobs and holds their leases."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import ResponseError

from server.broker import liveness, messages, redis
from server.broker.reservations import Retention

log = logging.getLogger("fada.worker")

LEASE_S = 1.0
QUARANTINE_S = 20.0  # how long a suspected poison job is reserved for idle workers
_CLAIM_BLOCK_MS = 250
_RECLAIM_BATCH = 10  # expired leases inspected at a time
_CONSUMER_TTL_MS = 60_000  # an idle worker's name in the consumer group

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


@dataclass(frozen=True)
class LeaseHolder:
    """Jobs in a format that a worker of ``format`` cannot read are left to others."""

    connection: redis.Connection
    worker_id: str
    retention: Retention
    _: KW_ONLY
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
