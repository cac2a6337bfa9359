"""What is reserved for jobs: a place, bytes of Redis and bytes of the folder that all share.

A job's uploads and its video are reserved before the first byte is stored, so that a job that was
accepted finds room. Avatars have room of their own, or they would take that of jobs.
`lua/reserve.lua` decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.broker import redis
from server.broker.amount import NOTHING, Amount
from server.errors import ServiceError

_DEFAULT_MEMORY = 1 << 30  # of a Redis without maxmemory
_WHAT = ("", "places", "bytes in Redis", "bytes on disk")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the uploads and videos of all jobs may take together, and all avatars in Redis.

    A client may hold at most ``share`` of what the others leave, and always one place.
    """

    redis_bytes: int = 1 << 50
    folder_bytes: int = 1 << 50
    avatar_bytes: int = 1 << 50
    share: float = 1.0

    @property
    def largest(self) -> Amount:
        """The most that one job may ever take."""
        return Amount(int(self.share * self.redis_bytes), int(self.share * self.folder_bytes))


UNLIMITED = Limits()


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


async def configured_limits(
    connection: redis.Connection, redis_bytes: int | None, folder_bytes: int, *, share: float = 1.0
) -> Limits:
    """Half of Redis's memory is for avatars; without ``redis_bytes``, a quarter is for jobs.

    Live sessions need the rest.
    """
    info = await redis.retry_on_disconnect(partial(connection.redis.info, "memory"))
    memory = int(info["maxmemory"]) or _DEFAULT_MEMORY
    if redis_bytes is None:
        redis_bytes = memory // 4
    return Limits(
        redis_bytes=redis_bytes,
        folder_bytes=folder_bytes,
        avatar_bytes=memory // 2,
        share=share,
    )


async def reserve(
    connection: redis.Connection,
    job_id: str,
    amount: Amount,
    *,
    limits: Limits,
    ttl_s: int,
    places: int = 0,
    kind: str = "",
    client: str = "",
    owner: str = "",
) -> None:
    """Reserve ``amount`` and one of ``places`` for a job of ``client``, for ``ttl_s`` seconds.

    Each ``kind`` of job has as many places. Without ``kind``, change what is reserved for the job.
    Where bytes are missing, the client's own kept videos (in the list of ``owner``) go, the oldest
    first. Raises `ServiceError` ``busy`` when no room is left, ``too_large`` when there never is.
    """
    most = (0, places, limits.redis_bytes, limits.folder_bytes)
    wanted = (0, 1, amount.redis_bytes, amount.folder_bytes)
    largest = (0, 1, limits.largest.redis_bytes, limits.largest.folder_bytes)
    for what, allowed in enumerate(largest):
        if wanted[what] > allowed:
            raise ServiceError(
                "too_large",
                f"the uploads and the video may take {wanted[what]} {_WHAT[what]}, "
                f"expected at most {allowed}{_hint(limits)}",
            )
    if amount.folder_bytes and connection.folder is not None:
        most = (*most[:3], await connection.folder.room(limits.folder_bytes))
    arguments = [job_id, ttl_s, kind, client, limits.share]
    for what, limit in enumerate(most[1:], 1):
        arguments += [wanted[what], limit]

    async def drop(video: str) -> None:
        await connection.redis.zrem(redis.videos_key(owner), video)
        await redis.drop_video(connection, video)

    keys = (redis.RESERVED, redis.EXPIRIES)
    missing, left = await _reserve(connection, keys, arguments, drop=drop)
    if missing:
        raise _busy(missing, wanted[missing], left, limits=limits, limit=most[missing])


async def reserve_avatar(
    connection: redis.Connection,
    avatar_id: str,
    size: int,
    *,
    limits: Limits,
    share: float,
    ttl_s: int,
    owner: str,
) -> None:
    """Reserve ``size`` bytes for an avatar; the owner's least recently used make room.

    Raises `ServiceError` ``busy`` where that is not enough.
    """

    async def drop(avatar: str) -> None:
        await connection.redis.zrem(redis.avatars_key(owner), avatar)
        await redis.drop_avatar(connection, avatar)

    keys = (redis.RESERVED_AVATARS, redis.AVATAR_EXPIRIES)
    arguments = [avatar_id, ttl_s, "kept", owner, share, 0, 0, size, limits.avatar_bytes, 0, 0]
    missing, left = await _reserve(connection, keys, arguments, drop=drop)
    if missing:
        raise ServiceError(
            "busy", f"the avatar takes {size} bytes in Redis, expected at most {left} now"
        )


async def _reserve(
    connection: redis.Connection,
    keys: Sequence[str],
    arguments: Sequence[Any],
    *,
    drop: Callable[[str], Awaitable[None]],
) -> tuple[int, int]:
    """Run ``reserve.lua``; while it names something that the client keeps, ``drop`` that and retry.

    Returns what is missing then (0: nothing), and how much of it the client may still take.
    """
    while True:
        run = partial(connection.run, "reserve", keys, arguments)
        missing, *rest = await redis.retry_on_disconnect(run)
        if not missing:
            return 0, 0
        left, oldest = rest
        if not oldest:
            return missing, left
        await drop(oldest.decode())


async def reserved(connection: redis.Connection) -> Amount:
    """What is reserved for all jobs and kept videos."""
    total = NOTHING
    for entry in (await connection.redis.hgetall(redis.RESERVED)).values():
        _, in_redis, in_folder, _ = entry.decode().split(" ", 3)
        total += Amount(int(in_redis), int(in_folder))
    return total


async def release(connection: redis.Connection, job_id: str) -> None:
    """Free what is reserved for a job, and delete its uploads."""
    parts = [redis.part_key(job_id, part) for part in redis.PARTS]
    await connection.redis.delete(*parts)
    await redis.unreserve(connection, job_id)


def _busy(what: int, wanted: int, left: int, *, limits: Limits, limit: int) -> ServiceError:
    if what == 1:
        held = f"all {limit} places are taken" if limits.share == 1 else "no place is free"
        return ServiceError("busy", f"{held}{_hint(limits)}")
    return ServiceError(
        "busy",
        f"the uploads and the video may take {wanted} {_WHAT[what]}, "
        f"expected at most {left} now{_hint(limits)}",
    )


def _hint(limits: Limits) -> str:
    """Why a client may not take all."""
    if limits.share == 1:
        return ""
    return f" (a client may hold {limits.share:.0%} of what others leave)"
