"""Heartbeats: which workers and readers are alive, and the leases of workers that are not."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from server.broker import messages, redis
from server.tasks import background

# The idle time of a released job: longer than any lease.
RELEASED_MS = 3_600_000

# How long a start is waited for: it takes seconds, on a busy machine a minute.
STARTING_S = 60
_LOADED = b"loaded"

_READER_TTL_S = 5
_READER_HEARTBEAT_S = 1.0


def worker_id(process_id: int) -> str:
    """The id of the worker that runs as ``process_id`` on this machine."""
    return f"{socket.gethostname()}-{process_id}"


async def live_workers(connection: redis.Connection) -> dict[str, messages.Heartbeat]:
    """The last heartbeat of every live worker, by id; dead workers are removed."""
    ids = sorted(await connection.redis.smembers(redis.WORKERS))
    if not ids:
        return {}
    texts = await connection.redis.mget([redis.worker_key(i.decode()) for i in ids])
    dead = [i for i, text in zip(ids, texts, strict=True) if text is None]
    if dead:
        await connection.redis.srem(redis.WORKERS, *dead)
    return {
        i.decode(): messages.Heartbeat.model_validate_json(text)
        for i, text in zip(ids, texts, strict=True)
        if text is not None
    }


async def announce_start(connection: redis.Connection, worker_id: str) -> None:
    """Say that a worker starts: jobs wait for it for `STARTING_S`, or until `end_start`."""
    await connection.redis.set(redis.starting_key(worker_id), "", ex=STARTING_S)
    await connection.redis.sadd(redis.STARTING, worker_id)


async def end_start(connection: redis.Connection, worker_id: str) -> None:
    """The worker has joined, or will not."""
    await connection.redis.delete(redis.starting_key(worker_id))
    await connection.redis.srem(redis.STARTING, worker_id)


async def announce_loaded(connection: redis.Connection, worker_id: str) -> None:
    """Say that a worker that starts has loaded its models."""
    await connection.redis.set(redis.starting_key(worker_id), _LOADED, ex=STARTING_S)


async def starting_workers(connection: redis.Connection) -> dict[str, bool]:
    """The workers that have begun to start and not joined yet: id → whether models are loaded."""
    ids = sorted(await connection.redis.smembers(redis.STARTING))
    if not ids:
        return {}
    signs = await connection.redis.mget([redis.starting_key(i.decode()) for i in ids])
    late = [i for i, sign in zip(ids, signs, strict=True) if sign is None]
    if late:
        await connection.redis.srem(redis.STARTING, *late)
    found = zip(ids, signs, strict=True)
    return {i.decode(): sign == _LOADED for i, sign in found if sign is not None}


async def is_live(connection: redis.Connection, worker_id: str) -> bool:
    """Whether this worker has joined and still sends heartbeats."""
    return bool(await connection.redis.exists(redis.worker_key(worker_id)))


async def deregister(connection: redis.Connection, worker_id: str) -> None:
    """Remove this worker until its next heartbeat, whether it has joined or still starts."""
    await end_start(connection, worker_id)
    await connection.redis.delete(redis.worker_key(worker_id))
    await connection.redis.srem(redis.WORKERS, worker_id)


async def release_leases(connection: redis.Connection, worker_id: str) -> None:
    """Deregister a worker that is known to be dead; its jobs can be reclaimed at once."""
    await deregister(connection, worker_id)
    queues = [redis.queue_key(kind) for kind in redis.QUEUES]
    await connection.run("release_leases", queues, [redis.GROUP, worker_id, RELEASED_MS])


@asynccontextmanager
async def register_reader(connection: redis.Connection) -> AsyncIterator[str]:
    """Send a reader's heartbeats while the block runs, under the name that it is given.

    The name is new each time: a restarted process does not read the jobs it submitted before.
    """
    name = secrets.token_hex(8)
    try:
        async with background(_send_heartbeats(connection, redis.reader_key(name))):
            yield name
    finally:
        with suppress(*redis.BROKER_LOST):  # the key also expires by itself
            await connection.redis.delete(redis.reader_key(name))


async def _send_heartbeats(connection: redis.Connection, key: str) -> None:
    while True:
        with suppress(*redis.BROKER_LOST):
            await connection.run("reader_heartbeat", [key], [_READER_TTL_S])
        await asyncio.sleep(_READER_HEARTBEAT_S)
