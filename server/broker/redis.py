"""The common ground of both halves of the broker: connections, key names and atomic steps.

Knows: Redis, and which keys make up a job. Does not know HTTP or models. `server.broker.client`
is the API's half, `server.broker.work` the workers'.

Keys, all under ``fada:``
    jobs               stream, one entry a job that is queued or running; group ``workers``
    job:{id}           hash: request, status, progress, error
    job:{id}:portrait  upload, gone when the job ends
    job:{id}:audio     upload, gone when the job ends
    job:{id}:out       stream of events, from the worker to the readers
    job:{id}:in        stream of commands, from the readers to the worker
    workers            set of worker ids; worker:{id} expires unless its worker lives
    avatars            sorted set, by last use; avatar:{id} hash: view, reference
    videos             sorted set of finished jobs whose out-stream is kept
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import OutOfMemoryError

from server.errors import ServiceError

T = TypeVar("T")

JOBS = "fada:jobs"
GROUP = "workers"
WORKERS = "fada:workers"
AVATARS = "fada:avatars"
VIDEOS = "fada:videos"
PARTS = ("portrait", "audio")


def job_key(job_id: str) -> str:
    return f"fada:job:{job_id}"


def out_key(job_id: str) -> str:
    return f"fada:job:{job_id}:out"


def in_key(job_id: str) -> str:
    return f"fada:job:{job_id}:in"


def part_key(job_id: str, part: str) -> str:
    return f"fada:job:{job_id}:{part}"


def worker_key(worker_id: str) -> str:
    return f"fada:worker:{worker_id}"


def avatar_key(avatar_id: str) -> str:
    return f"fada:avatar:{avatar_id}"


# KEYS jobs, job, out; ARGV job id, request, queued event, places, TTL. False: no place is free.
_SUBMIT = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
local entry = redis.call('XADD', KEYS[1], '*', 'job', ARGV[1])
redis.call('HSET', KEYS[2], 'status', 'queued', 'request', ARGV[2], 'entry', entry)
redis.call('XADD', KEYS[3], '*', 'm', ARGV[3], 'b', '')
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return 1
"""

# KEYS jobs, job, in; ARGV entry, group, worker, first command, TTL. The request, or false for a job
# that was cancelled while it was queued. Commands to a live session may be there before.
_CLAIM = """
if redis.call('HGET', KEYS[2], 'status') ~= 'queued' then
  redis.call('XACK', KEYS[1], ARGV[2], ARGV[1])
  redis.call('XDEL', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
  return false
end
redis.call('HSET', KEYS[2], 'status', 'running', 'worker', ARGV[3])
redis.call('XADD', KEYS[3], '*', 'm', ARGV[4], 'b', '')
redis.call('EXPIRE', KEYS[3], ARGV[5])
return redis.call('HGET', KEYS[2], 'request')
"""

# KEYS job, in; ARGV command, bytes, TTL. 0: the job has ended, or never was.
_TELL = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[1], 'b', ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""

# KEYS job, out, in; ARGV event, bytes, TTL, then field and value pairs. 0: the job runs no more.
_PUBLISH = """
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[1], 'b', ARGV[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
return 1
"""

# KEYS jobs, job, out, portrait, audio; ARGV group, status, event, TTL, then field and value
# pairs. Ends a job once: 0 when it had ended before. Its place in the queue is free afterwards. It
# must work without memory, too, for it is what gives memory back.
_END = """#!lua flags=allow-oom
local entry = redis.call('HGET', KEYS[2], 'entry')
if not entry then return 0 end
local before = redis.call('HGET', KEYS[2], 'status')
redis.call('XACK', KEYS[1], ARGV[1], entry)
redis.call('XDEL', KEYS[1], entry)
redis.call('DEL', KEYS[4], KEYS[5])
if before ~= 'queued' and before ~= 'running' then return 0 end
redis.call('HSET', KEYS[2], 'status', ARGV[2])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('XADD', KEYS[3], 'NOMKSTREAM', '*', 'm', ARGV[3], 'b', '')
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[3], ARGV[4])
return 1
"""


@dataclass(frozen=True)
class Connection:
    """``redis`` answers at once; ``blocking`` waits in reads without a socket timeout.

    A blocking read on a client with redis-py's default timeout of 5 s would be retried while the
    server still waits, and lose what arrives. Both are ``redis.asyncio.Redis``, whose annotations
    are a union over every protocol and decoding; here replies are always bytes.
    """

    redis: Any
    blocking: Any
    submit: AsyncScript
    claim: AsyncScript
    tell: AsyncScript
    publish: AsyncScript
    end_script: AsyncScript

    async def end(self, job_id: str, status: str, event: bytes, ttl_s: int, *facts: Any) -> bool:
        """End a job once, with its last event; True when this call was the one that ended it."""
        keys = [JOBS, job_key(job_id), out_key(job_id)]
        keys += [part_key(job_id, part) for part in PARTS]
        return bool(await self.end_script(keys, [GROUP, status, event, ttl_s, *facts]))


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Open both clients; they are closed at the end of the block."""
    redis = Redis.from_url(url)
    blocking = Redis.from_url(url, socket_timeout=None)
    try:
        yield Connection(
            redis,
            blocking,
            *(redis.register_script(text) for text in (_SUBMIT, _CLAIM, _TELL, _PUBLISH, _END)),
        )
    finally:
        await redis.aclose()
        await blocking.aclose()


async def with_room(connection: Connection, write: Callable[[], Awaitable[T]]) -> T:
    """Do ``write``; while memory is short, kept videos go, then avatars, the oldest first.

    Raises `ServiceError` ``busy`` when none is left and memory still is short.
    """
    while True:
        try:
            return await write()
        except OutOfMemoryError as error:
            if not await _drop_oldest(connection):
                raise ServiceError("busy", "the service's memory is full") from error


async def _drop_oldest(connection: Connection) -> bool:
    for ranking, drop in ((VIDEOS, drop_video), (AVATARS, drop_avatar)):
        oldest = await connection.redis.zpopmin(ranking)
        if oldest:
            await drop(connection, oldest[0][0].decode())
            return True
    return False


async def drop_video(connection: Connection, job_id: str) -> int:
    """A kept video, and all that is known of its job; how many keys there were."""
    return int(await connection.redis.delete(out_key(job_id), job_key(job_id)))


async def drop_avatar(connection: Connection, avatar_id: str) -> int:
    """How many keys there were."""
    return int(await connection.redis.delete(avatar_key(avatar_id)))
