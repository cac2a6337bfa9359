"""Host and Origin checks, against cross-site requests and DNS rebinding.

A browser sends the requests of any website's pages from inside the user's network. A request that
changes something must therefore come from a page of this service or of ``FADA_CORS_ORIGINS``. A
service on loopback answers only to loopback names, or a website could rebind its own name to
127.0.0.1 and be same-origin with it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from server.api.problems import problem_response
from server.errors import ServiceError

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = re.compile(r"localhost|[\w-]+\.localhost|127\.\d+\.\d+\.\d+|::1", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


class OriginCheck:
    """ASGI middleware that rejects foreign hosts and origins.

    ``hosts`` are allowed beside loopback names; if empty, any host is, unless the service listens
    on ``loopback`` only. ``origins`` are allowed beside the service's own.
    """

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
                await _reject(scope, receive, send, error=error)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope.get("client") and not is_address(scope["client"][0]):
            raise ServiceError("bad_request", "X-Forwarded-For does not hold an IP address")
        host, port = _split(headers.get("host", ""))
        if not (self._any_host or host in self._hosts or _LOOPBACK.fullmatch(host)):
            raise ServiceError("forbidden", "the request's Host is not allowed; see FADA_HOSTS")
        origin = headers.get("origin")
        safe = scope["type"] == "http" and scope["method"] in _SAFE_METHODS
        if origin is None or safe or origin in self._origins or "*" in self._origins:
            return
        try:
            parts = urlsplit(origin)
            source = parts.hostname, str(parts.port or _DEFAULT_PORTS.get(parts.scheme, ""))
        except ValueError:
            source = None, ""
        default = _DEFAULT_PORTS.get("https" if origin.startswith("https") else "http", "")
        if source != (host, port or default):
            raise ServiceError(
                "forbidden", "the request's Origin is not allowed; see FADA_CORS_ORIGINS"
            )


def is_address(text: str) -> bool:
    """Whether ``text`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a service that listens on ``host`` is reachable from this machine only."""
    return bool(_LOOPBACK.fullmatch(host.lower().strip("[]")))


def _split(host: str) -> tuple[str, str]:
    """Split ``name:port`` or ``[address]:port``; the port may be empty."""
    name, _, port = host.rpartition(":") if re.search(r":\d*$", host) else (host, "", "")
    if host.startswith("[") and host.endswith("]"):
        name, port = host, ""
    return name.strip("[]").lower(), port


async def _reject(scope: Scope, receive: Receive, send: Send, *, error: ServiceError) -> None:
    response = problem_response(error)
    if scope["type"] == "http":
        await response(scope, receive, send)
        return
    await receive()  # websocket.connect
    await WebSocket(scope, receive, send).send_denial_response(response)
