"""A connection's hold on a live session, which outlives a lost connection for a while.

The latest connection has the session: the one before can send no more commands. Without a
connection the session's reader expires (`server.broker.liveness`), and its worker ends it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from server.broker import redis

RESUME_S = 10.0  # a client may come back at least so long after its connection was lost
HEARTBEAT_S = 1.0
_FIRST_TTL_S = 20
_READER_TTL_S = 7  # with the worker's patience, 10 to 12 s without a connection
# What was sent may still be lost on its way: as long as a dead connection goes unnoticed.
KEPT_S = 20.0
MAX_KEPT_BYTES = 2 << 20


@dataclass(frozen=True)
class InputPosition:
    """How far a session's input has come: bytes of sound in all, of these before the last
    interrupt, and whether the client has said `end`."""

    received: int = 0
    dropped: int = 0
    ended: bool = False

    def pack(self) -> str:
        return f"{self.received} {self.dropped} {int(self.ended)}"

    @classmethod
    def unpack(cls, text: str) -> InputPosition:
        received, dropped, ended = (int(number) for number in text.split())
        return cls(received, dropped, bool(ended))


@dataclass(frozen=True)
class Attachment:
    """Connection ``number`` of a session, and where the session stood when it came.

    ``commands`` counts the commands so far. ``fragments`` and ``consumed``, the fragments made and
    the bytes of sound in them, are ``None`` where an older worker has not stored them.
    """

    job_id: str
    number: int
    commands: int = 0
    position: InputPosition = InputPosition()
    fragments: int | None = None
    consumed: int | None = None


async def expect_connection(connection: redis.Connection, job_id: str) -> None:
    """Hold a queued session for its first connection, which may take some seconds to come."""
    await connection.redis.set(redis.reader_key(job_id), b"", ex=_FIRST_TTL_S)


async def attach(connection: redis.Connection, job_id: str) -> Attachment | None:
    """Take the session over from whichever connection has it; ``None`` if it is gone."""
    keys = [redis.job_key(job_id), redis.out_key(job_id), redis.reader_key(job_id)]
    run = partial(connection.run, "attach", keys, [_READER_TTL_S])
    found = await redis.retry_on_disconnect(run)
    if found is None:
        return None
    number, commands, position, fragments, consumed = found
    return Attachment(
        job_id,
        number,
        int(commands or 0),
        InputPosition() if position is None else InputPosition.unpack(position.decode()),
        None if fragments is None else int(fragments),
        None if consumed is None else int(consumed),
    )


async def stay_attached(connection: redis.Connection, attachment: Attachment) -> bool:
    """Renew the hold for some seconds; False when a later connection has the session."""
    keys = [redis.job_key(attachment.job_id), redis.reader_key(attachment.job_id)]
    arguments = [attachment.number, _READER_TTL_S]
    return bool(await connection.run("stay_attached", keys, arguments))


def kept_bytes(redis_bytes: int, sessions: int) -> int:
    """What each of so many sessions may keep, if all may take a quarter of ``redis_bytes``."""
    return min(MAX_KEPT_BYTES, redis_bytes // (4 * sessions))


class KeptFragments:
    """The fragments that were sent and stay for a client that comes back.

    They stay for `KEPT_S` while they take at most ``max_bytes``, and the last one always does.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: deque[tuple[bytes, int, float]] = deque()
        self._bytes = 0

    def sent(self, entry: bytes, size: int) -> list[bytes]:
        """Another one was sent; returns the entries that need not stay."""
        now_s = time.monotonic()
        self._entries.append((entry, size, now_s))
        self._bytes += size
        expired = []
        while len(self._entries) > 1 and (
            self._bytes > self._max_bytes or self._entries[0][2] < now_s - KEPT_S
        ):
            oldest, size, _ = self._entries.popleft()
            self._bytes -= size
            expired.append(oldest)
        return expired
