"""Authentication and quotas: API keys, requests a minute, concurrent live sessions.

A key is sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. Browsers cannot set headers on
a WebSocket, so there a client may offer it as a subprotocol, ``fada.key.`` followed by the key in
unpadded base64url, beside ``fada``, which is the one that is accepted. Unlike a query parameter, a
subprotocol does not end up in access logs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from server.api.video import Detached
from server.broker.liveness import live_workers
from server.broker.redis import Connection, queue_key
from server.errors import ServiceError
from server.settings import Settings
from server.tasks import background

log = logging.getLogger("fada.api")

SUBPROTOCOL = "fada"
_KEY_PREFIX = "fada.key."
# After which a place is free again whose API process is dead, or whose connection was lost.
_LEASE_S = 12


@dataclass(frozen=True)
class ApiClient:
    """A client: its key's hash, or its address where no keys are set.

    ``owner`` owns the jobs and avatars that the client creates; empty: they are shared by all.
    """

    name: str
    owner: str


class Access:
    """Checks keys and quotas; counts are kept in the broker, for all API processes together."""

    def __init__(self, connection: Connection, settings: Settings, *, share: float = 1.0) -> None:
        """``share``: of the live sessions that others leave, see `Limits`."""
        self._broker = connection
        self._keys = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]
        self._share = settings.keys_share
        self._per_minute = settings.requests_per_minute
        self._sessions, self._session_share = settings.sessions_per_client, share

    async def admit(self, connection: HTTPConnection) -> ApiClient:
        """Authenticate a request and count it.

        Raises `ServiceError` ``unauthorized``, or ``busy`` beyond the requests a minute.
        """
        client = self._name(connection)
        if self._per_minute:
            wait_s = float(
                await self._broker.run(
                    "take_token", [f"fada:requests:{client}"], [self._per_minute]
                )
            )
            if wait_s:
                raise ServiceError(
                    "busy",
                    f"at most {self._per_minute} requests a minute are allowed; "
                    f"the next in {wait_s:.1f} s",
                    math.ceil(wait_s),
                )
        return ApiClient(client, client if self._keys and not self._share else "")

    @asynccontextmanager
    async def session(self, client: str, place: str = "") -> AsyncIterator[None]:
        """Hold one of the client's places for live sessions while the block runs.

        ``client`` is an `ApiClient.name`, ``place`` names a place that it may still hold. A block
        that raises `Detached` leaves the place to the next connection for a while. Raises
        `ServiceError` ``busy`` when all are taken.
        """
        if not self._sessions and self._session_share == 1:
            yield
            return
        key, holder = f"fada:places:{client}", place or secrets.token_hex(8)
        places = sum(one.live_places for one in (await live_workers(self._broker)).values())
        held = await self._hold(key, holder, places)
        if held == 0:
            raise ServiceError(
                "busy", f"at most {self._sessions} live sessions at once are allowed per client"
            )
        if held < 0:
            raise ServiceError(
                "busy",
                f"a client may hold {self._session_share:.0%} of the {places} places for live "
                "sessions that others leave",
            )
        leave = False
        try:
            async with background(self._renew(key, holder)):
                yield
        except Detached:
            leave = True
            raise
        finally:
            if not leave:
                await asyncio.shield(asyncio.create_task(self._free(key, holder)))

    async def _renew(self, key: str, holder: str) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            try:
                await self._hold(key, holder)
            except RedisError as error:
                log.warning("cannot renew a live session's place: %s", error)

    async def _hold(self, key: str, holder: str, places: int = 0) -> int:
        arguments = [holder, _LEASE_S, self._sessions, self._session_share, places]
        return int(await self._broker.run("hold_place", [key, queue_key("live")], arguments))

    async def _free(self, key: str, holder: str) -> None:
        try:
            await self._broker.redis.zrem(key, holder)
        except RedisError as error:
            log.warning("cannot free a live session's place: %s", error)

    def _name(self, connection: HTTPConnection) -> str:
        if not self._keys:
            return f"address:{connection.client.host if connection.client else 'unknown'}"
        key = _sent_key(connection)
        if key is None:
            raise ServiceError(
                "unauthorized",
                "expected an API key, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            )
        digest = _digest(key)
        # Constant time: compare with every key, whichever matches.
        if not sum(hmac.compare_digest(digest, known) for known in self._keys):
            raise ServiceError("unauthorized", "the API key is unknown")
        return f"key:{digest.hex()[:16]}"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def subprotocol(connection: HTTPConnection) -> str | None:
    """The subprotocol to accept: `SUBPROTOCOL` if the client offers it."""
    return SUBPROTOCOL if SUBPROTOCOL in _offered(connection) else None


def _sent_key(connection: HTTPConnection) -> bytes | None:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode()
    if "x-api-key" in connection.headers:
        return connection.headers["x-api-key"].strip().encode()
    for offered in _offered(connection):
        if offered.startswith(_KEY_PREFIX):
            text = offered.removeprefix(_KEY_PREFIX)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (binascii.Error, ValueError):
                return b""
    return None


def _offered(connection: HTTPConnection) -> list[str]:
    return list(connection.scope.get("subprotocols", []))
