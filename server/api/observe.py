"""Every request is seen once: its line in the log, its count, its span, its id."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs, metrics, traces
from server.api.doors import is_address

log = logging.getLogger("fada.access")

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_QUIET = ("/healthz", "/readyz", "/metrics", "/static/{path:path}")
_HUNG_UP = 1006
_FAILED = 500
# Whatever else a client sends is one label: labels are kept for as long as the process lives.
_STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"])
_CLOSE_CODES = frozenset([1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013])
_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}


class Observe:
    """The outermost ASGI middleware. A client may name its request by ``X-Request-Id``.

    Every answer also forbids browsers to guess its type and to frame it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        logs.bind(request=request_id)
        seen = _Seen(receive, send, request_id)
        method = scope.get("method", "WS")
        method = method if method in _METHODS else "other"
        began_s = time.monotonic()
        with traces.span(method, headers, request=request_id):
            try:
                await self._app(scope, seen.receive, seen.send)
            except Exception:
                seen.status = seen.status or _FAILED  # which the framework is about to answer
                raise
            finally:
                route = getattr(scope.get("route"), "path", "other")
                traces.note(f"{method} {route}", status=seen.status)
                metrics.request(method, route, _status(method, seen.status))
                _log_request(scope, method, route, seen.status, time.monotonic() - began_s)


def _status(method: str, status: int) -> str:
    """HTTP's, which are ours; of close codes, which are the client's, the known ones."""
    return str(status) if method != "WS" or status in _CLOSE_CODES or status < 1000 else "other"


class _Seen:
    """The way in and out of one request. ``status``: HTTP's, or a WebSocket's close code."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self.status = 0  # none was sent: the client hung up before

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect" and not self.status:
            self.status = message.get("code") or _HUNG_UP
        return message

    async def send(self, message: Message) -> None:
        if message["type"] in _STARTS:
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
        elif message["type"] == "websocket.close":
            self.status = message.get("code", 1000)
        await self._send(message)


def _log_request(scope: Scope, method: str, route: str, status: int, seconds: float) -> None:
    client = scope["client"][0] if scope.get("client") else "unknown"
    client = client if is_address(client) else "no address"  # what a proxy passes on is text
    path = scope.get("raw_path", b"").decode("latin-1")[:200]
    facts = {
        "client": client,
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(1e3 * seconds, 1),
    }
    level = logging.DEBUG if route in _QUIET else logging.INFO
    log.log(
        level, "%s %s %s %d in %.0f ms", client, method, path, status, 1e3 * seconds,
        extra={"facts": facts},
    )  # fmt: skip
