"""Which workers live, and the end of the leases of those that do not; which readers live."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from server.broker import messages, redis

# An idle time beyond any lease.
RELEASED_MS = 3_600_000

_READER_TTL_S = 5
_READER_BEAT_S = 1.0


def worker_id(process_id: int) -> str:
    """The name of the worker that runs as ``process_id`` on this machine."""
    return f"{socket.gethostname()}-{process_id}"


async def live_workers(connection: redis.Connection) -> dict[str, messages.Beat]:
    """What each worker last said of itself, by id; dead ones are struck off."""
    ids = sorted(await connection.redis.smembers(redis.WORKERS))
    if not ids:
        return {}
    texts = await connection.redis.mget([redis.worker_key(i.decode()) for i in ids])
    dead = [i for i, text in zip(ids, texts, strict=True) if text is None]
    if dead:
        await connection.redis.srem(redis.WORKERS, *dead)
    pairs = zip(ids, texts, strict=True)
    return {
        i.decode(): messages.Beat.model_validate_json(text) for i, text in pairs if text is not None
    }


async def is_live(connection: redis.Connection, worker_id: str) -> bool:
    """Whether this worker has joined, and goes on saying so."""
    return bool(await connection.redis.exists(redis.worker_key(worker_id)))


async def deregister(connection: redis.Connection, worker_id: str) -> None:
    """Count this worker no more; until it says again that it lives."""
    await connection.redis.delete(redis.worker_key(worker_id))
    await connection.redis.srem(redis.WORKERS, worker_id)


async def release_leases(connection: redis.Connection, worker_id: str) -> None:
    """Strike off a worker that is known to be dead; its jobs may be claimed at once."""
    await deregister(connection, worker_id)
    queues = [redis.queue_key(kind) for kind in redis.QUEUES]
    await connection.release_leases(queues, [redis.GROUP, worker_id, RELEASED_MS])


@asynccontextmanager
async def reading(connection: redis.Connection) -> AsyncIterator[str]:
    """Be seen to read, under the name given, while the block runs.

    The name is new each time: a process that is started again does not read what it asked for
    before.
    """
    name = secrets.token_hex(8)
    task = asyncio.create_task(_read_on(connection, redis.reader_key(name)))
    try:
        yield name
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with suppress(*redis.BROKER_LOST):  # it expires by itself, too
            await connection.redis.delete(redis.reader_key(name))


async def _read_on(connection: redis.Connection, key: str) -> None:
    while True:
        with suppress(*redis.BROKER_LOST):
            await connection.show([key], [_READER_TTL_S])
        await asyncio.sleep(_READER_BEAT_S)
