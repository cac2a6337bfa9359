"""The API's half of the broker: submit jobs, follow, command and cancel them; look things up."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from server import traces
from server.api.protocol import AvatarView, JobView, ModelList, ModelView
from server.broker import messages, redis, reservations, videos
from server.broker.attachment import RESUME_S, Attachment, InputPosition, KeptFragments
from server.broker.follow import Follower
from server.broker.liveness import STARTING_S, live_workers, starting_workers
from server.broker.place import Place
from server.broker.reservations import UNLIMITED, Limits
from server.errors import ServiceError

_ENDED_TTL_S = 600
_WAIT_POLL_S = 0.2  # for a worker that starts
_MAX_COMMANDS = 20_000  # that no snapshot includes yet


@dataclass(frozen=True)
class JobProducer:
    """Each queue has ``max_jobs`` places; unread output expires after ``job_ttl_s`` seconds.

    ``reader`` is this process's reader name (`server.broker.liveness.register_reader`); a job
    without one runs to its end whether it is read or not. Only jobs and avatars of ``owner`` are
    visible. ``client`` is whose share of ``limits`` a job takes. ``format`` is that of the requests
    (`messages.FORMAT`).
    """

    connection: redis.Connection
    max_jobs: int
    job_ttl_s: int
    _: KW_ONLY
    reader: str = ""
    owner: str = ""
    client: str = ""
    limits: Limits = UNLIMITED
    format: int = messages.FORMAT

    @asynccontextmanager
    async def place(
        self, kind: str, upload_bytes: int, *, guessed: bool = False
    ) -> AsyncIterator[Place]:
        """A place in a queue, with room for so many bytes of uploads.

        It is free again at the end of the block unless the job was submitted. Videos, avatars and
        verifications each have ``max_jobs`` places. A number of bytes that is only ``guessed`` is
        reduced to what may ever be stored. Raises `ServiceError` ``busy`` or
        ``too_large`` when it cannot be had, ``no_worker`` when no worker that reads our format is
        alive.
        """
        folder = self.connection.folder
        shared = {worker.folder for worker in await self._workers()}
        if folder is not None and (folder.token not in shared or not self.limits.folder_bytes):
            folder = None
        place = Place(self, kind, _new_id(), folder=folder)
        await place.reserve(upload_bytes, guessed=guessed)
        try:
            yield place
        finally:
            if not place.submitted:
                await asyncio.shield(asyncio.create_task(place.release()))

    async def submit(self, request: messages.AnyRequest, parts: Mapping[str, bytes]) -> str:
        """Queue a job with its uploads (`redis.PARTS`) and return its id.

        Raises as `place` does; live sessions are limited to the capacity that the workers report.
        """
        if request.kind != "live":
            async with self.place(request.kind, sum(map(len, parts.values()))) as place:
                for part, blob in parts.items():
                    await place.write(part, blob)
                return await place.submit(request)
        places = min(self.max_jobs, sum(worker.live_places for worker in await self._workers()))
        job_id = _new_id()

        async def write() -> None:
            for part, blob in parts.items():
                key = redis.part_key(job_id, part)
                await self.connection.redis.set(key, blob, ex=self.job_ttl_s)

        queued = False
        try:
            await redis.with_eviction(self.connection, write, self.owner)
            await self.queue(job_id, request, places)
            queued = True
        finally:
            if not queued:
                await reservations.release(self.connection, job_id)
        return job_id

    async def queue(
        self, job_id: str, request: messages.AnyRequest, places: int, *, folder: str = ""
    ) -> None:
        """Queue a job whose uploads are stored, for workers that share ``folder`` if it is given.

        Raises `ServiceError` ``busy`` when all ``places`` are taken or memory is full.
        """
        event, _ = messages.pack_event(messages.Queued())
        context = {
            "trace": traces.current(),
            "reader": self._reader(job_id, request),
            "owner": self.owner,
        }
        keys = [redis.queue_key(request.kind), redis.job_key(job_id), redis.out_key(job_id)]
        arguments: list[Any] = [
            job_id,
            messages.pack_request(request.model_copy(update=context)),
            event,
            places,
            self.job_ttl_s,
            max(self.format, await self._avatar_format(request)),
            folder,
        ]
        write = partial(self.connection.run, "submit", keys, arguments)
        if not await redis.with_eviction(self.connection, write, self.owner):
            raise ServiceError("busy", f"all {places} places are taken")

    def _reader(self, job_id: str, request: messages.AnyRequest) -> str:
        """A live session's connections are its own reader (`server.broker.attachment`)."""
        if request.kind == "live":
            return job_id
        return "" if request.keep else self.reader

    async def _avatar_format(self, request: messages.AnyRequest) -> int:
        """The format of what a request's avatar was stored in; 0 without an avatar.

        It may be newer than ours: then only workers that read it may take the job.
        """
        avatar_id = getattr(request, "avatar_id", None)
        if avatar_id is None:
            return 0
        written = await self.connection.redis.hget(redis.avatar_key(avatar_id), "format")
        return int(written or 0)

    async def reference_bytes(self, request: messages.AnyRequest) -> int:
        """What the copy of a request's avatar takes that its job keeps; 0 without an avatar."""
        avatar_id = getattr(request, "avatar_id", None)
        if avatar_id is None:
            return 0
        return int(await self.connection.redis.hstrlen(redis.avatar_key(avatar_id), "reference"))

    async def _workers(self) -> list[messages.Heartbeat]:
        """Live workers that read our format; waits and raises as `wait_for_worker` does."""
        alive = await self.wait_for_worker()
        workers = [worker for worker in alive if messages.reads(worker.format, self.format)]
        if not workers:
            formats = ", ".join(str(one) for one in sorted({worker.format for worker in alive}))
            raise ServiceError(
                "no_worker", f"format of the workers = {formats}, expected {self.format}"
            )
        return workers

    async def wait_for_worker(self) -> list[messages.Heartbeat]:
        """The heartbeats of all live workers; while there is none, wait for one that starts.

        Raises `ServiceError` ``no_worker`` when none starts, or a start takes `STARTING_S`.
        """
        deadline_s = time.monotonic() + STARTING_S
        while True:
            starting = await self.starting()  # asked first: a worker joins before its start ends
            if alive := await live_workers(self.connection):
                return list(alive.values())
            if not starting or time.monotonic() > deadline_s:
                raise no_worker()
            await asyncio.sleep(_WAIT_POLL_S)

    def follow(
        self,
        job_id: str,
        *,
        consume: bool,
        kept: KeptFragments | None = None,
        resumed: bool = False,
    ) -> AsyncIterator[messages.AnyEvent]:
        """Yield every event of a job, from the first to its ending (`server.broker.follow`)."""
        follower = Follower(self.connection, job_id, self.job_ttl_s)
        return follower.follow(consume=consume, kept=kept, resumed=resumed)

    async def cancel(self, job_id: str) -> bool:
        """End the job now; False if it had ended before or is unknown.

        Its worker notices when it next renews its lease.
        """
        event, _ = messages.pack_event(messages.Cancelled())
        return await self.connection.end(job_id, None, "cancelled", event=event, ttl_s=_ENDED_TTL_S)

    async def forget(self, job_id: str) -> None:
        """Delete a job's video; its status stays for `_ENDED_TTL_S` seconds."""
        await self.connection.redis.delete(redis.out_key(job_id))
        await redis.unreserve(self.connection, job_id)
        await self.connection.redis.expire(redis.job_key(job_id), _ENDED_TTL_S)

    async def erase(self, job_id: str) -> None:
        """Delete everything of a live session that has ended."""
        await redis.drop_video(self.connection, job_id)

    async def abandon(self, job_id: str, *, live: bool = False) -> None:
        """Cancel a job whose reader has left and delete its output, even while being cancelled."""

        async def _cancel_and_delete() -> None:
            await self.cancel(job_id)
            await (self.erase(job_id) if live else self.forget(job_id))

        await asyncio.shield(asyncio.create_task(_cancel_and_delete()))

    async def retire(self, job_id: str) -> None:
        """End a live session; its last events stay for a client that may have missed them."""
        await self.cancel(job_id)
        for key in (redis.job_key(job_id), redis.out_key(job_id)):
            await self.connection.redis.expire(key, round(RESUME_S))
        await redis.unreserve(self.connection, job_id)

    async def live_request(self, job_id: str) -> tuple[messages.LiveRequest, int | None] | None:
        """The owner's live session, and `Attachment.fragments`; ``None`` if there is none."""
        text, made = await self.connection.redis.hmget(
            redis.job_key(job_id), "request", "fragments"
        )
        request = None if text is None else messages.unpack_request(text)
        if not isinstance(request, messages.LiveRequest) or request.owner != self.owner:
            return None
        return request, None if made is None else int(made)

    async def send_command(
        self,
        job_id: str,
        number: int,
        command: messages.LiveCommand,
        *,
        by: Attachment | None = None,
        position: InputPosition | None = None,
    ) -> bool:
        """Send a command to a live session; False if the session has ended.

        ``number`` counts a session's commands from 1; sending a number again has no effect.
        ``position`` is that of the input after it.
        Raises `ServiceError` ``busy`` when memory is full, ``too_large`` when too many commands
        are pending, ``internal_error`` when a command before it was lost, ``taken_over`` when a
        connection after ``by`` has the session.
        """
        text, data = messages.pack_command(command)
        keys = [redis.job_key(job_id), redis.in_key(job_id)]
        arguments: list[Any] = [number, text, data, self.job_ttl_s, _MAX_COMMANDS]
        arguments += [0 if by is None else by.number, (position or InputPosition()).pack()]
        write = partial(self.connection.run, "send_command", keys, arguments)
        sent = await redis.with_eviction(self.connection, write, None)
        if sent == -2:
            raise redis.lost()
        if sent == -3:
            raise taken_over()
        if sent < 0:
            raise ServiceError(
                "too_large", f"more than {_MAX_COMMANDS} messages are pending; wait for fragments"
            )
        return bool(sent)

    async def view(self, job_id: str) -> JobView | None:
        """The job's status and progress; ``None`` if it is unknown or has expired."""
        job = await self.connection.redis.hgetall(redis.job_key(job_id))
        if not job:
            return None
        request = messages.unpack_request(job[b"request"])
        if request.kind != "animate" or request.owner != self.owner:
            return None
        duration_s = float(job.get(b"duration_s", 0))
        total_s = float(job.get(b"total_s", 0))
        status = job[b"status"].decode()
        progress = min(1.0, duration_s / total_s) if total_s else 0.0
        error = None
        if b"code" in job:
            published = ServiceError.published(job[b"code"].decode(), job[b"detail"].decode())
            error = published.problem()
        return JobView.model_validate(
            {
                "id": job_id,
                "status": status,
                "output": request.options.output,
                "progress": 1.0 if status == "done" else progress,
                "frames": int(job.get(b"frames", 0)),
                "duration_s": duration_s,
                "warnings": videos.lines(job.get(b"warnings")),
                "error": error,
            }
        )

    async def is_live(self, job_id: str) -> bool:
        """Whether this is a live session of the owner's."""
        text = await self.connection.redis.hget(redis.job_key(job_id), "request")
        if text is None:
            return False
        request = messages.unpack_request(text)
        return request.kind == "live" and request.owner == self.owner

    async def keeps_video(self, job_id: str) -> bool:
        """Whether the job exists and its video can be read from the start."""
        return await self.kept_output(job_id) == "video"

    async def kept_output(self, job_id: str) -> str | None:
        """What a kept job makes, ``video`` or ``motion``, where it can be read from the start."""
        text, written_in = await self.connection.redis.hmget(
            redis.job_key(job_id), "request", "folder"
        )
        if text is None:
            return None
        request = messages.unpack_request(text)
        if request.kind != "animate" or not request.keep or request.owner != self.owner:
            return None
        folder = "" if self.connection.folder is None else self.connection.folder.token
        if request.in_folder and (written_in or b"").decode() != folder:
            return None
        readable = await self.connection.redis.exists(redis.out_key(job_id))
        return request.options.output if readable else None

    async def models(self) -> ModelList:
        """The models that live workers have loaded, in the workers' order."""
        found: dict[str, ModelView] = {}
        for worker in (await live_workers(self.connection)).values():
            for model in worker.models:
                found.setdefault(model.name, model)
        return ModelList(models=list(found.values()), default=next(iter(found), None))

    async def starting(self) -> bool:
        """Whether a worker starts, for which requests wait."""
        return bool(await starting_workers(self.connection))

    async def preparations(self) -> list[str]:
        """What live workers prepare while they serve, each once."""
        workers = (await live_workers(self.connection)).values()
        return list(dict.fromkeys(worker.detail for worker in workers if worker.detail))

    async def avatar(self, avatar_id: str) -> AvatarView | None:
        """The owner's avatar, or ``None``."""
        key = redis.avatar_key(avatar_id)
        text, owner = await self.connection.redis.hmget(key, "view", "owner")
        if text is None or owner.decode() != self.owner:
            return None
        return AvatarView.model_validate_json(text)

    async def delete_avatar(self, avatar_id: str) -> bool:
        """Delete the owner's avatar; False if there was none."""
        if await self.avatar(avatar_id) is None:
            return False
        await self.connection.redis.zrem(redis.avatars_key(self.owner), avatar_id)
        return bool(await redis.drop_avatar(self.connection, avatar_id))


def _new_id() -> str:
    return secrets.token_hex(12)


def taken_over() -> ServiceError:
    """The error of a connection whose session another one has resumed."""
    return ServiceError("taken_over", "another connection has resumed this session")


def no_worker(*, starting: bool = False) -> ServiceError:
    """The error of a request that needs a worker while none is connected."""
    what = "a worker is starting" if starting else "no worker is connected yet"
    return ServiceError("no_worker", f"{what}; try again in a moment")
