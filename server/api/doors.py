"""Who may knock: hosts, origins and addresses, before anything else is looked at.

Browsers send other people's pages' requests with the user's own network position. So a request
that a page could have made must come from a page of this service or of `cors_origins`, and a
service on loopback answers only to loopback names, or a name that is rebound to 127.0.0.1
(DNS rebinding) would make any page its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from server import metrics
from server.errors import ServiceError

_SAFE = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = re.compile(r"localhost|[\w-]+\.localhost|127\.\d+\.\d+\.\d+|::1", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


class Doors:
    """ASGI middleware. ``hosts``: names to answer to, besides loopback ones; empty: all, unless
    the service listens on ``loopback`` only."""

    def __init__(
        self, app: ASGIApp, origins: Collection[str], hosts: Collection[str], *, loopback: bool
    ) -> None:
        self._app = app
        self._origins = origins
        self._hosts = {host.lower() for host in hosts}
        self._any_host = not loopback and not hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(scope)
            except ServiceError as error:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope.get("client") and not is_address(scope["client"][0]):
            raise ServiceError("bad_request", "X-Forwarded-For holds no address")
        host, port = _split(headers.get("host", ""))
        if not (self._any_host or host in self._hosts or _LOOPBACK.fullmatch(host)):
            raise ServiceError(
                "forbidden", "the request names a host that is not served here; see FADA_HOSTS"
            )
        origin = headers.get("origin")
        safe = scope["type"] == "http" and scope["method"] in _SAFE
        if origin is None or safe or origin in self._origins or "*" in self._origins:
            return
        try:
            parts = urlsplit(origin)
            theirs = parts.hostname, str(parts.port or _DEFAULT_PORTS.get(parts.scheme, ""))
        except ValueError:
            theirs = None, ""
        default = _DEFAULT_PORTS.get("https" if origin.startswith("https") else "http", "")
        if theirs != (host, port or default):
            raise ServiceError(
                "forbidden", "pages of this origin may not use the service; see FADA_CORS_ORIGINS"
            )


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a service that listens on ``host`` is reached from this machine only."""
    return bool(_LOOPBACK.fullmatch(host.lower().strip("[]")))


def _split(host: str) -> tuple[str, str]:
    """``name:port`` or ``[address]:port`` as name and port, which may be empty."""
    name, _, port = host.rpartition(":") if re.search(r":\d*$", host) else (host, "", "")
    if host.startswith("[") and host.endswith("]"):
        name, port = host, ""
    return name.strip("[]").lower(), port


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    metrics.error(error.code)
    media_type = "application/problem+json"
    response = JSONResponse(error.problem(), error.kind.status, media_type=media_type)
    if scope["type"] == "http":
        await response(scope, receive, send)
        return
    await receive()  # websocket.connect
    await WebSocket(scope, receive, send).send_denial_response(response)
