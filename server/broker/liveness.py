"""Which workers live, and what becomes of the jobs of those that do not.

Knows: worker keys, which expire unless renewed, and the queue's list of jobs in hand. Does not
restart anything: a job of a dead worker ends with a clear error.
"""

from __future__ import annotations

import socket

from server.broker import messages, redis

_LOST_JOB_TTL_S = 600


def worker_id(process_id: int) -> str:
    """The name of the worker that runs as ``process_id`` on this machine."""
    return f"{socket.gethostname()}-{process_id}"


async def live_workers(connection: redis.Connection) -> dict[str, bytes]:
    """Worker id -> JSON list of the students that it has loaded; dead ones are struck off."""
    ids = sorted(await connection.redis.smembers(redis.WORKERS))
    if not ids:
        return {}
    texts = await connection.redis.mget([redis.worker_key(i.decode()) for i in ids])
    dead = [i for i, text in zip(ids, texts, strict=True) if text is None]
    if dead:
        await connection.redis.srem(redis.WORKERS, *dead)
    pairs = zip(ids, texts, strict=True)
    return {i.decode(): text for i, text in pairs if text is not None}


async def is_live(connection: redis.Connection, worker_id: str) -> bool:
    """Whether this worker has joined, and goes on saying so."""
    return bool(await connection.redis.exists(redis.worker_key(worker_id)))


async def bury(connection: redis.Connection, worker_id: str) -> None:
    """Strike off a worker that is known to be dead, and end its jobs."""
    await connection.redis.delete(redis.worker_key(worker_id))
    await connection.redis.srem(redis.WORKERS, worker_id)
    await fail_orphans(connection)


async def fail_orphans(connection: redis.Connection) -> None:
    """End the jobs whose worker is dead, each with an event to its readers."""
    if not await connection.redis.exists(redis.JOBS):
        return
    pending = await connection.redis.xpending(redis.JOBS, redis.GROUP)
    holders = [holder["name"].decode() for holder in pending["consumers"] or []]
    alive = await live_workers(connection) if holders else {}
    for holder in set(holders) - set(alive):
        await _fail_jobs_of(connection, holder)


async def _fail_jobs_of(connection: redis.Connection, holder: str) -> None:
    failed = messages.Failed(code="internal_error", detail="the worker that ran the job is gone")
    event, _ = messages.pack_event(failed)
    entries = await connection.redis.xpending_range(
        redis.JOBS, redis.GROUP, "-", "+", 1000, consumername=holder
    )
    for entry in entries:
        entry_id = entry["message_id"]
        for _, fields in await connection.redis.xrange(redis.JOBS, entry_id, entry_id):
            facts = ["code", failed.code, "detail", failed.detail]
            job_id = fields[b"job"].decode()
            await connection.end(job_id, "failed", event, _LOST_JOB_TTL_S, *facts)
        # The job's own end does both, unless its hash has expired.
        await connection.redis.xack(redis.JOBS, redis.GROUP, entry_id)
        await connection.redis.xdel(redis.JOBS, entry_id)
