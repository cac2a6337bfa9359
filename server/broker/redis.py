"""The common ground of both halves of the broker: connections, key names and atomic steps.

`server.broker.producer` is the API's half, `server.broker.consumer` the workers'. Every step that
changes a job may be done twice with the effect of once, so a step whose answer was lost is simply
done again.

Keys, all under ``fada:``; one server, no cluster
    queue:{kind}        stream, one entry a job that is queued or running; group ``workers``
    job:{id}            hash: request, status, progress, error; entry and queue; ``token``, the
                        number of its claims; ``seq`` and ``told``, events and commands so far
    job:{id}:portrait   upload, gone when the job ends; likewise :audio, :reference
    job:{id}:out        stream of events, from the worker to the readers
    job:{id}:in         stream of commands, from the readers to the worker
    job:{id}:state      what another worker needs to go on after the last event
    workers             set of worker ids; worker:{id} expires unless its worker lives
    reader:{name}       expires unless the API process lives that reads what it asked for
    avatars:{owner}     sorted set, by last use; avatar:{id} hash: view, reference, owner
    videos:{owner}      sorted set of finished jobs whose out-stream is kept
    owners              set of those who keep avatars
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NotAnswered

from server.errors import ServiceError, SetupError

T = TypeVar("T")

QUEUES = ("live", "animate", "avatar")
GROUP = "workers"
WORKERS = "fada:workers"
OWNERS = "fada:owners"
PARTS = ("portrait", "audio", "reference")

# What a call raises while the server is away, or stands still.
BROKER_LOST = (NotConnected, NotAnswered)
RETRY_S = 10.0
_AGAIN_S = 0.2

_ANSWER_S = 5.0
_BLOCKED_S = 10.0  # well above the longest blocking read


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


def reader_key(name: str) -> str:
    return f"fada:reader:{name}"


def avatars_key(owner: str) -> str:
    return f"fada:avatars:{owner}"


def videos_key(owner: str) -> str:
    return f"fada:videos:{owner}"


def avatar_key(avatar_id: str) -> str:
    return f"fada:avatar:{avatar_id}"


# KEYS queue, job, out; ARGV job id, request, queued event, places, TTL. 0: no place is free.
_SUBMIT = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
local entry = redis.call('XADD', KEYS[1], '*', 'job', ARGV[1])
redis.call('HSET', KEYS[2], 'status', 'queued', 'request', ARGV[2], 'entry', entry,
  'queue', KEYS[1], 'token', 0, 'tries', 0, 'late', 0, 'seq', 0, 'told', 0)
redis.call('XADD', KEYS[3], '*', 'm', ARGV[3], 'b', '')
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return 1
"""

# KEYS workers, worker; ARGV id, what it says of itself, TTL. Without memory, too: else a full
# server would look like one without workers.
_BEAT = """#!lua flags=allow-oom
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
"""

# KEYS reader; ARGV TTL. Without memory, too: else its sessions would seem to be nobody's.
_SHOW = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], '', 'EX', ARGV[1])
"""

# KEYS queue, job, in; ARGV entry, group, first command, TTL, tries or late: what to count it as.
# Request, token, seq, tries, late; or nothing for a job that has ended. Commands to a live session
# may be there before. Without memory, too: what waits for a worker gives it back only once it has
# one.
_CLAIM = """#!lua flags=allow-oom
local status = redis.call('HGET', KEYS[2], 'status')
if status ~= 'queued' and status ~= 'running' then
  redis.call('XACK', KEYS[1], ARGV[2], ARGV[1])
  redis.call('XDEL', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
  return false
end
if status == 'queued' then redis.call('XADD', KEYS[3], '*', 'm', ARGV[3], 'b', '') end
redis.call('HSET', KEYS[2], 'status', 'running')
local token = redis.call('HINCRBY', KEYS[2], 'token', 1)
redis.call('HINCRBY', KEYS[2], ARGV[5], 1)
redis.call('EXPIRE', KEYS[3], ARGV[4])
local facts = redis.call('HMGET', KEYS[2], 'request', 'seq', 'tries', 'late')
return {facts[1], token, facts[2], facts[3], facts[4]}
"""

# KEYS job, in; ARGV command's number, command, bytes, TTL, most commands. 0: the job has ended,
# or never was; -1: too many wait.
_SEND_COMMAND = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
if tonumber(ARGV[1]) <= tonumber(redis.call('HGET', KEYS[1], 'told')) then return 1 end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[5]) then return -1 end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[2], 'b', ARGV[3])
redis.call('HSET', KEYS[1], 'told', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
"""

# KEYS job, out, in, state; ARGV token, event's number, event, bytes, TTL, state, first command that
# the state does not hold, then field and value pairs. 0: the job runs no more, or elsewhere. Event
# and state go in together, and only then go the commands that the state has taken in.
_PUBLISH = """
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'seq')) >= tonumber(ARGV[2]) then return 1 end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[3], 'b', ARGV[4])
redis.call('SET', KEYS[4], ARGV[6], 'EX', ARGV[5])
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[7])
redis.call('HSET', KEYS[1], 'seq', ARGV[2], 'tries', 0, 'late', 0)
for i = 8, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[5]) end
return 1
"""

# KEYS queue and job, for each job; ARGV group, worker, idle ms, then entry and token for each. For
# each job 1 when it still was this worker's: its lease then began that long ago. Who lets go of a
# job has not failed at it. Without memory, too, as for `_CLAIM`.
_LEASE = """#!lua flags=allow-oom
local kept = {}
for i = 1, #KEYS / 2 do
  local queue, job, entry, token = KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i + 2], ARGV[2 * i + 3]
  kept[i] = 0
  if redis.call('HGET', job, 'token') == token
      and redis.call('HGET', job, 'status') == 'running' then
    redis.call('XCLAIM', queue, ARGV[1], ARGV[2], 0, entry, 'IDLE', ARGV[3], 'JUSTID')
    local failed = tonumber(redis.call('HGET', job, 'tries'))
    if tonumber(ARGV[3]) > 0 and failed > 0 then redis.call('HSET', job, 'tries', failed - 1) end
    kept[i] = 1
  end
end
return kept
"""

# KEYS queues; ARGV group, worker, idle ms. All leases of a dead worker end.
_RELEASE_LEASES = """
for _, queue in ipairs(KEYS) do
  if redis.call('EXISTS', queue) == 1 then
    for _, held in ipairs(redis.call('XPENDING', queue, ARGV[1], '-', '+', 1000, ARGV[2])) do
      redis.call('XCLAIM', queue, ARGV[1], ARGV[2], 0, held[1], 'IDLE', ARGV[3], 'JUSTID')
    end
  end
end
"""

# KEYS job, out, in, state, portrait, audio, reference; ARGV token ('' for any), group, status,
# event, TTL, then field and value pairs. Ends a job once: 0 when it had ended before, or is another
# worker's. Its place in the queue is free afterwards. It must work without memory, too, for it is
# what gives memory back.
_END = """#!lua flags=allow-oom
local entry = redis.call('HGET', KEYS[1], 'entry')
if not entry then return 0 end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
local queue, before = redis.call('HGET', KEYS[1], 'queue'), redis.call('HGET', KEYS[1], 'status')
redis.call('XACK', queue, ARGV[2], entry)
redis.call('XDEL', queue, entry)
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
if before ~= 'queued' and before ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3])
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'm', ARGV[4], 'b', '')
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
"""


@dataclass(frozen=True)
class Connection:
    """``redis`` answers at once; ``blocking`` waits in reads of up to a second or so.

    Both are ``redis.asyncio.Redis``, whose annotations are a union over every protocol and
    decoding; here replies are always bytes.
    """

    redis: Any
    blocking: Any
    submit: AsyncScript
    beat: AsyncScript
    show: AsyncScript
    claim: AsyncScript
    send_command: AsyncScript
    publish: AsyncScript
    lease: AsyncScript
    release_leases: AsyncScript
    end_script: AsyncScript

    async def end(
        self, job_id: str, token: int | None, status: str, event: bytes, ttl_s: int, *facts: Any
    ) -> bool:
        """End a job once, with its last event; True when this call was the one that ended it.

        ``token`` is of the claim that ends it, ``None`` for who may end any.
        """
        keys = [job_key(job_id), out_key(job_id), in_key(job_id), state_key(job_id)]
        keys += [part_key(job_id, part) for part in PARTS]
        fence = "" if token is None else token
        arguments = [fence, GROUP, status, event, ttl_s, *facts]
        return bool(await retry_on_disconnect(lambda: self.end_script(keys, arguments)))


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Open both clients; they are closed at the end of the block."""

    def client(timeout_s: float) -> Any:
        again = Retry(ConstantBackoff(0.1), 2)
        return Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=_ANSWER_S, retry=again
        )

    redis, blocking = client(_ANSWER_S), client(_BLOCKED_S)
    scripts = (
        _SUBMIT,
        _BEAT,
        _SHOW,
        _CLAIM,
        _SEND_COMMAND,
        _PUBLISH,
        _LEASE,
        _RELEASE_LEASES,
        _END,
    )
    try:
        yield Connection(redis, blocking, *(redis.register_script(text) for text in scripts))
    finally:
        await redis.aclose()
        await blocking.aclose()


async def expect_answer(url: str, patience_s: float) -> None:
    """Raises `SetupError` when no Redis answers at ``url``, or it wants another password.

    One that does not answer yet is waited for: services that start together take turns.
    """
    place = urlsplit(url)
    shown = f"{place.scheme}://{place.hostname or ''}{f':{place.port}' if place.port else ''}"
    shown = url if place.scheme == "unix" else shown  # without its password
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            async with connect(url) as connection:
                await connection.redis.ping()
            return
        except BROKER_LOST as error:
            if time.monotonic() > give_up_s or isinstance(error, AuthenticationError):
                raise SetupError(f"FADA_REDIS_URL: {shown} does not answer: {error}") from error
        except (RedisError, ValueError) as error:
            raise SetupError(f"FADA_REDIS_URL: {shown}: {error}") from error
        await asyncio.sleep(_AGAIN_S)


async def retry_on_disconnect(step: Callable[[], Awaitable[T]]) -> T:
    """Do ``step``, again while the server is away, for `RETRY_S`; then raises `BROKER_LOST`."""
    give_up_s = time.monotonic() + RETRY_S
    while True:
        try:
            return await step()
        except BROKER_LOST:
            if time.monotonic() > give_up_s:
                raise
        await asyncio.sleep(_AGAIN_S)


async def with_eviction(
    connection: Connection, write: Callable[[], Awaitable[T]], owner: str | None
) -> T:
    """Do ``write``, retrying on disconnect; while memory is short, what ``owner`` keeps makes room.

    Videos go first, then avatars, the oldest first; ``None`` keeps nothing, and nobody else's go.
    Raises `ServiceError` ``busy`` when none is left and memory still is short.
    """
    while True:
        try:
            return await retry_on_disconnect(write)
        except OutOfMemoryError as error:
            if owner is None or not await _drop_oldest(connection, owner):
                raise ServiceError("busy", "the service's memory is full") from error


async def _drop_oldest(connection: Connection, owner: str) -> bool:
    for ranking, drop in ((videos_key(owner), drop_video), (avatars_key(owner), drop_avatar)):
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
