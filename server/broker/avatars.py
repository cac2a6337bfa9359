"""Prepared portraits in Redis: stored, found, and evicted when they are unused."""

from __future__ import annotations

import time
from functools import partial

from server.api.protocol import AvatarView
from server.broker import messages, redis
from server.broker.reservations import Limits, reserve_avatar
from server.errors import ServiceError


async def save_avatar(
    connection: redis.Connection,
    avatar: AvatarView,
    reference: bytes,
    *,
    owner: str,
    format: int,
    ttl_s: int,
    limit: int,
    limits: Limits,
    share: float,
) -> None:
    """Store a prepared portrait; the owner's least recently used go beyond the ``limit``.

    Raises `ServiceError` ``busy`` when there is no room.
    """
    await reserve_avatar(
        connection,
        avatar.avatar_id,
        len(reference),
        limits=limits,
        share=share,
        ttl_s=ttl_s,
        owner=owner,
    )
    key = redis.avatar_key(avatar.avatar_id)
    fields = {
        "view": avatar.model_dump_json(),
        "reference": reference,
        "owner": owner,
        "format": format,
    }
    write = partial(connection.redis.hset, key, mapping=fields)
    await redis.with_eviction(connection, write, owner)
    await connection.redis.expire(key, ttl_s)
    await connection.redis.sadd(redis.OWNERS, owner)
    for old in await rank(connection, redis.avatars_key(owner), avatar.avatar_id, limit=limit):
        await redis.drop_avatar(connection, old)


async def load_avatar(
    connection: redis.Connection, avatar_id: str, *, format: int, ttl_s: int
) -> tuple[bytes, str] | None:
    """A reference and its owner, marked as most recently used.

    Raises `ServiceError` ``not_found`` for one that a worker of ``format`` cannot read.
    """
    key = redis.avatar_key(avatar_id)
    reference, owner, written = await connection.redis.hmget(key, "reference", "owner", "format")
    if reference is None:
        return None
    if not messages.reads(format, int(written or messages.UNVERSIONED)):
        raise ServiceError(
            "not_found", f"avatar {avatar_id!r} is of another release; create it again"
        )
    owner = (owner or b"").decode()
    await connection.redis.expire(key, ttl_s)
    now = time.time()
    await connection.redis.zadd(redis.avatars_key(owner), {avatar_id: now})
    await connection.redis.zadd(redis.AVATAR_EXPIRIES, {avatar_id: now + ttl_s}, xx=True)
    return bytes(reference), owner


async def rank(connection: redis.Connection, ranking: str, name: str, *, limit: int) -> list[str]:
    """Rank ``name`` first; remove and return those beyond ``limit``, the oldest first."""
    await connection.redis.zadd(ranking, {name: time.time()})
    excess = await connection.redis.zcard(ranking) - limit
    if excess <= 0:
        return []
    popped = await connection.redis.zpopmin(ranking, excess)
    return [member.decode() for member, _ in popped]
