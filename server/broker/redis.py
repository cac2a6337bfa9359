"""What producer and consumer share: connections, key names and atomic steps.

`server.broker.producer` is for the API, `server.broker.consumer` for workers. The atomic steps
are the Lua scripts in ``lua/``. Every step that changes a job is idempotent, so a step whose reply
was lost is simply retried.

Keys, all under ``fada:``, on one server (no cluster)
    queue:{kind}        stream, one entry for each queued or running job; group ``workers``
    job:{id}            hash: request, status, progress, error; entry and queue; of a finished
                        video ``init`` and ``index``, see `messages.JobDone`; ``token``, the
                        number of claims; ``events`` and ``commands``, how many there were;
                        ``attempts`` and ``lease_timeouts``, see `server.broker.leases.Claim`;
                        ``format``, see `messages.FORMAT`; of a live session ``connection``,
                        ``position``, ``fragments`` and ``consumed``, see `Attachment`
    job:{id}:portrait   upload, deleted when the job ends; likewise :audio, :reference, :video
    job:{id}:out        stream of events, from the worker to the readers
    job:{id}:in         stream of commands, from the readers to the worker
    job:{id}:state      snapshot after the last event, from which another worker can resume
    workers             set of worker ids; worker:{id} is a heartbeat and expires without it
    starting            set of ids of workers that have not joined yet; starting:{id} expires
                        when the start takes too long
    reader:{name}       heartbeat of the API process that reads the jobs it submitted; or of a
                        live session's connection, named by the job
    avatars:{owner}     sorted set, by last use; avatar:{id} hash: view, reference, owner,
                        format
    videos:{owner}      sorted set of finished jobs whose out-stream is kept
    owners              set of the clients that keep avatars
    service             name of this Redis's subfolder in the shared folder
    reserved            hash: what is reserved for each job and kept video, see lua/reserve.lua;
                        reserved:until is a sorted set of the times at which that expires;
                        reserved:avatars and reserved:avatars:until are the same for avatars
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NotAnswered

from server.broker.amount import NOTHING, Amount
from server.broker.client import open_client, without_password
from server.broker.folder import SharedFolder, shared_folder
from server.errors import ServiceError, SetupError
from server.tasks import background

log = logging.getLogger("fada.broker")

T = TypeVar("T")

QUEUES = ("live", "animate", "avatar", "verify")
GROUP = "workers"
WORKERS = "fada:workers"
STARTING = "fada:starting"
OWNERS = "fada:owners"
SERVICE = "fada:service"
RESERVED, EXPIRIES = "fada:reserved", "fada:reserved:until"
RESERVED_AVATARS, AVATAR_EXPIRIES = "fada:reserved:avatars", "fada:reserved:avatars:until"
PARTS = ("portrait", "audio", "reference", "video")

# What a call raises while the server is away or hangs.
BROKER_LOST = (NotConnected, NotAnswered)
RETRY_S = 10.0
_RETRY_PAUSE_S = 0.2
_SWEEP_S = 30.0

_REPLY_TIMEOUT_S = 5.0
_BLOCKING_TIMEOUT_S = 10.0  # well above the longest blocking read


def queue_key(kind: str) -> str:
    return f"fada:queue:{kind}"


def job_key(job_id: str) -> str:
    return f"fada:job:{job_id}"


def out_key(job_id: str) -> str:
    return f"fada:job:{job_id}:out"


def in_key(job_id: str) -> str:
    return f"fada:job:{job_id}:in"


def state_key(job_id: str) -> str:
    return f"fada:job:{job_id}:state"


def part_key(job_id: str, part: str) -> str:
    return f"fada:job:{job_id}:{part}"


def worker_key(worker_id: str) -> str:
    return f"fada:worker:{worker_id}"


def starting_key(worker_id: str) -> str:
    return f"fada:starting:{worker_id}"


def reader_key(name: str) -> str:
    return f"fada:reader:{name}"


def avatars_key(owner: str) -> str:
    return f"fada:avatars:{owner}"


def videos_key(owner: str) -> str:
    return f"fada:videos:{owner}"


def avatar_key(avatar_id: str) -> str:
    return f"fada:avatar:{avatar_id}"


_SCRIPTS = {
    path.name.removesuffix(".lua"): path.read_text()
    for path in resources.files("server.broker").joinpath("lua").iterdir()
    if path.name.endswith(".lua")
}


class Connection:
    """Two clients of one server, or of the primary of now, and the scripts of ``lua/``.

    ``folder`` holds what is too large for Redis, where it is shared.

    ``redis`` is for commands that reply at once, ``blocking`` for reads that block for up to a
    second or so. Both are ``redis.asyncio.Redis``, whose annotations are a union over every
    protocol and decoding; here replies are always bytes.
    """

    def __init__(self, redis: Any, blocking: Any, folder: SharedFolder | None = None) -> None:
        self.redis = redis
        self.blocking = blocking
        self.folder = folder
        self._scripts = {name: redis.register_script(text) for name, text in _SCRIPTS.items()}

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run ``lua/{script}.lua`` and return its reply."""
        return await self._scripts[script](keys, arguments)

    async def end(
        self,
        job_id: str,
        token: int | None,
        status: str,
        *,
        event: bytes,
        ttl_s: int,
        kept: Amount = NOTHING,
        fields: Mapping[str, Any] = MappingProxyType({}),
    ) -> bool:
        """End a job once, with its last event; return whether this call ended it.

        ``token`` is that of the claim that ends it; ``None`` ends the job regardless of its claim.
        ``fields`` are added to the job's hash, which expires after ``ttl_s`` seconds, as does its
        video, which takes ``kept``.
        """
        keys = [job_key(job_id), out_key(job_id), in_key(job_id), state_key(job_id)]
        keys += [part_key(job_id, part) for part in PARTS]
        fence = "" if token is None else token
        arguments = [job_id, fence, GROUP, status, event, ttl_s]
        arguments += [kept.redis_bytes, kept.folder_bytes, *flatten(fields)]
        keys += [RESERVED, EXPIRIES]
        ended = bool(await retry_on_disconnect(partial(self.run, "end", keys, arguments)))
        if ended and self.folder is not None:
            await self.folder.delete(job_id, PARTS if kept.folder_bytes else None)
        return ended


def flatten(fields: Mapping[str, Any]) -> list[Any]:
    """Field, value, field, value, … as scripts take them."""
    return [item for pair in fields.items() for item in pair]


@asynccontextmanager
async def connect(url: str, data: Path | None = None) -> AsyncIterator[Connection]:
    """Open both clients, and the folder in ``data``; close them at the end of the block.

    Raises `SetupError` for a folder that cannot be used.
    """
    async with (
        open_client(url, _REPLY_TIMEOUT_S) as redis,
        open_client(url, _BLOCKING_TIMEOUT_S) as blocking,
    ):
        if data is None:
            yield Connection(redis, blocking)
            return
        with shared_folder(data, await service_name(redis)) as folder:
            yield Connection(redis, blocking, folder)


async def service_name(client: Any, name: str = "") -> str:
    """The name of this Redis, which is ``name`` or a new one where it has none."""
    await client.set(SERVICE, name or secrets.token_hex(8), nx=True)
    return (await client.get(SERVICE)).decode()


async def check_connection(url: str, timeout_s: float) -> None:
    """Wait up to ``timeout_s`` for a Redis at ``url``: it may be starting at the same time.

    Raises `SetupError` when none replies, and at once when it rejects the password.
    """
    shown = without_password(url)
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            async with connect(url) as connection:
                await connection.redis.ping()
            return
        except BROKER_LOST as error:
            if time.monotonic() > deadline_s or isinstance(error, AuthenticationError):
                raise SetupError(f"FADA_REDIS_URL: {shown} does not reply: {error}") from error
        except (RedisError, ValueError, TypeError) as error:  # a TypeError for an unknown option
            raise SetupError(f"FADA_REDIS_URL: {shown}: {error}") from error
        await asyncio.sleep(_RETRY_PAUSE_S)


def lost() -> ServiceError:
    """The error of a job that lost a part in a fail-over: replicas lag behind."""
    return ServiceError("internal_error", "a part of the job was lost with a Redis server")


async def retry_on_disconnect(step: Callable[[], Awaitable[T]]) -> T:
    """Run ``step``, retrying for `RETRY_S` while the server is away; then raise `BROKER_LOST`."""
    deadline_s = time.monotonic() + RETRY_S
    while True:
        try:
            return await step()
        except BROKER_LOST:
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(_RETRY_PAUSE_S)


async def with_eviction(
    connection: Connection, write: Callable[[], Awaitable[T]], owner: str | None
) -> T:
    """Run ``write``, retrying on disconnect; when memory is full, evict what ``owner`` keeps.

    Videos go before avatars, the oldest first. ``None`` evicts nothing, and another owner's are
    never evicted. Raises `ServiceError` ``busy`` when nothing is left to evict.
    """
    while True:
        try:
            return await retry_on_disconnect(write)
        except OutOfMemoryError as error:
            if owner is None or not await _evict_oldest(connection, owner):
                raise ServiceError("busy", "the service's memory is full") from error


async def _evict_oldest(connection: Connection, owner: str) -> bool:
    for ranking, drop in ((videos_key(owner), drop_video), (avatars_key(owner), drop_avatar)):
        oldest = await connection.redis.zpopmin(ranking)
        if oldest:
            await drop(connection, oldest[0][0].decode())
            return True
    return False


async def drop_video(connection: Connection, job_id: str) -> None:
    """Delete a kept video and its job."""
    await connection.redis.delete(out_key(job_id), job_key(job_id))
    await unreserve(connection, job_id)


async def unreserve(connection: Connection, job_id: str) -> None:
    """Free what is reserved for a job, and delete its files."""
    await connection.redis.hdel(RESERVED, job_id)
    await connection.redis.zrem(EXPIRIES, job_id)
    if connection.folder is not None:
        await connection.folder.delete(job_id)


@asynccontextmanager
async def sweeping(connection: Connection) -> AsyncIterator[None]:
    """Sweep the folder, if there is one, from time to time while the block runs."""
    if connection.folder is None:
        yield
        return
    async with background(_keep_swept(connection, connection.folder)):
        yield


async def _keep_swept(connection: Connection, folder: SharedFolder) -> None:
    while True:
        try:
            await sweep(connection, folder)
        except (RedisError, OSError) as error:
            log.warning("cannot sweep FADA_DATA: %s", error)
        await asyncio.sleep(_SWEEP_S)


async def sweep(connection: Connection, folder: SharedFolder) -> None:
    """Delete the files of jobs for which nothing is reserved any more."""
    jobs = await asyncio.to_thread(folder.jobs)  # first: what is reserved is reserved before it
    seconds, _ = await connection.redis.time()
    held = await connection.redis.zrangebyscore(EXPIRIES, seconds, "+inf")
    for job_id in jobs - {job.decode() for job in held}:
        await folder.delete(job_id)
    folder.touch()
    await service_name(connection.redis, folder.service)  # a Redis that lost its data has it again


async def drop_avatar(connection: Connection, avatar_id: str) -> int:
    """Delete an avatar; return the number of keys deleted."""
    await connection.redis.hdel(RESERVED_AVATARS, avatar_id)
    await connection.redis.zrem(AVATAR_EXPIRIES, avatar_id)
    return int(await connection.redis.delete(avatar_key(avatar_id)))
