"""Who may use the service, and how much of it: keys, requests a minute, live sessions at once.

A key travels as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. A browser cannot set headers
on a WebSocket: there it may be offered as a subprotocol, ``fada.key.`` and the key in base64url
without padding, beside ``fada``, which is the one that is accepted. Unlike a query parameter, it
ends up in no log of addresses.
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

from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from server.broker.redis import Connection
from server.errors import ServiceError
from server.settings import Settings

log = logging.getLogger("fada.api")

SUBPROTOCOL = "fada"
OWNER = "fada.owner"  # in a request's scope: whose jobs and avatars it may see
_KEY_PREFIX = "fada.key."
_LEASE_S = 30  # a place held by an API process that died is free again after this


class Access:
    """The door of the service, at the broker of ``connection``."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._broker = connection
        self._keys = [_digest(key.get_secret_value().encode()) for key in settings.api_keys]
        self._share = settings.keys_share
        self._per_minute = settings.requests_per_minute
        self._sessions = settings.sessions_per_client

    async def admit(self, connection: HTTPConnection) -> str:
        """The name of the client that this request counts for; it holds no key.

        Jobs and avatars are the key's from here on.

        Raises `ServiceError` ``unauthorized``, or ``busy`` beyond the requests a minute.
        """
        client = self._name(connection)
        if self._keys and not self._share:
            connection.scope[OWNER] = client
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
        return client

    @asynccontextmanager
    async def session(self, client: str) -> AsyncIterator[None]:
        """Hold one of the client's places for live sessions for as long as the block runs.

        Raises `ServiceError` ``busy`` when all are taken.
        """
        if not self._sessions:
            yield
            return
        key, holder = f"fada:places:{client}", secrets.token_hex(8)
        if not await self._hold(key, holder):
            raise ServiceError(
                "busy", f"at most {self._sessions} live sessions at once are allowed a client"
            )
        renewing = asyncio.create_task(self._renew(key, holder))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await asyncio.shield(asyncio.create_task(self._give_back(key, holder)))

    async def _renew(self, key: str, holder: str) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            try:
                await self._hold(key, holder)
            except RedisError as error:
                log.warning("a session's place was not renewed: %s", error)

    async def _hold(self, key: str, holder: str) -> bool:
        arguments = [holder, self._sessions, _LEASE_S]
        return bool(await self._broker.run("hold_place", [key], arguments))

    async def _give_back(self, key: str, holder: str) -> None:
        try:
            await self._broker.redis.zrem(key, holder)
        except RedisError as error:
            log.warning("a session's place was not given back: %s", error)

    def _name(self, connection: HTTPConnection) -> str:
        if not self._keys:
            return f"address:{connection.client.host if connection.client else 'unknown'}"
        given = _given_key(connection)
        if given is None:
            raise ServiceError(
                "unauthorized",
                "send an API key, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            )
        digest = _digest(given)
        # All are compared, whichever matches.
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            raise ServiceError("unauthorized", "the API key is not known")
        return f"key:{digest.hex()[:16]}"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def subprotocol(connection: HTTPConnection) -> str | None:
    """The one to accept a WebSocket with, when the client offers ours."""
    return SUBPROTOCOL if SUBPROTOCOL in _offered(connection) else None


def _given_key(connection: HTTPConnection) -> bytes | None:
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
