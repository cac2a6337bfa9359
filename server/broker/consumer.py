"""The workers' half of the broker: heartbeats, uploads, commands, publishing, stored avatars."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from server.api.protocol import AvatarView
from server.broker import avatars, liveness, messages, redis, reservations
from server.broker.amount import NOTHING, Amount, amount
from server.broker.leases import Claim, LeaseHolder
from server.broker.reservations import UNLIMITED, Limits

_WORKER_TTL_S = 4
_COMMANDS_BLOCK_MS = 1000
_ENDED_LIVE_TTL_S = 60  # for a client that still reads, or comes back

START = "0-0"


@dataclass(frozen=True)
class JobConsumer(LeaseHolder):
    """One worker's access to the broker."""

    _: KW_ONLY
    limits: Limits = UNLIMITED

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
