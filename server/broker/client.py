"""Clients of the broker, by its URL.

``redis://``, ``rediss://`` (TLS) and ``unix://`` name one server. ``redis+sentinel://`` and
``rediss+sentinel://`` name Sentinels and the primary that they watch:
``redis+sentinel://[[user]:password@]host[:26379][,host…][/name[/db]]``. User and password are the
primary's, as everywhere; ``?sentinel_username=`` and ``?sentinel_password=`` are the Sentinels'.
With ``rediss`` all of them are reached by TLS; ``?ssl_ca_certs=FILE`` names the authorities that
are trusted instead of the system's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ConstantBackoff

_CONNECT_TIMEOUT_S = 5.0
_SENTINEL_TIMEOUT_S = 1.0  # so that one that is down costs little
_SENTINEL_PORT = 26379
_PRIMARY = "mymaster"  # as in Redis's own sentinel.conf
_SUFFIX = "+sentinel"
_OPTION = "sentinel_"


@asynccontextmanager
async def open_client(url: str, timeout_s: float) -> AsyncIterator[Any]:
    """A client whose calls wait ``timeout_s`` for a reply, until the block ends.

    It connects with the first call. Raises ``ValueError`` for an invalid URL.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "retry": Retry(ConstantBackoff(0.1), 2),
    }
    parts = urlsplit(url)
    if not parts.scheme.endswith(_SUFFIX):
        async with Redis.from_url(url, **options) as client:
            yield client
        return
    sentinel, name = _sentinel(parts, options)
    async with sentinel, sentinel.master_for(name) as client:
        yield client


def without_password(url: str) -> str:
    """What of ``url`` may be shown: scheme and hosts."""
    parts = urlsplit(url)
    return url if parts.scheme == "unix" else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _sentinel(parts: SplitResult, options: dict[str, Any]) -> tuple[Sentinel, str]:
    """The Sentinels of a URL and the name of the primary."""
    user, at, hosts = parts.netloc.rpartition("@")
    name, _, db = parts.path.strip("/").partition("/")
    scheme = parts.scheme.removesuffix(_SUFFIX)
    one = parts._replace(scheme=scheme, netloc=f"{user}{at}", path=f"/{db}")
    primary: dict[str, Any] = {**parse_url(one.geturl()), **options}
    names = [key for key in primary if key.startswith(_OPTION)]
    watchers = {key.removeprefix(_OPTION): primary.pop(key) for key in names}
    if primary.pop("connection_class", None) is SSLConnection:
        tls = {"ssl": True, **{k: v for k, v in primary.items() if k.startswith("ssl_")}}
        primary, watchers = primary | tls, watchers | tls
    watchers |= dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _SENTINEL_TIMEOUT_S)
    # Each failure is retried by the next call of the primary's client.
    watchers["retry"] = Retry(ConstantBackoff(0.0), 0)
    addresses = [_address(host) for host in hosts.split(",")]
    sentinel = Sentinel(addresses, sentinel_kwargs=watchers, **primary)  # type: ignore[no-untyped-call]
    return sentinel, name or _PRIMARY


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError(f"host = {host!r}, expected HOST or HOST:PORT")
    return parts.hostname, parts.port or _SENTINEL_PORT
