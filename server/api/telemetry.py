"""Telemetry of every request: its id, log line, counter and span."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs, metrics, traces
from server.api.origins import is_address

log = logging.getLogger("fada.access")

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_QUIET = ("/healthz", "/readyz", "/metrics", "/static/{path:path}")
_ABNORMAL_CLOSURE = 1006
_INTERNAL_ERROR = 500
_STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
# Label values are kept for the life of the process: all others are counted as "other".
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"])
_CLOSE_CODES = frozenset([1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013])
_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}


class Telemetry:
    """The outermost ASGI middleware. A client may set a request's id by ``X-Request-Id``.

    It also adds headers that forbid browsers to sniff content types and to frame responses.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _ID.fullmatch(sent_id) else secrets.token_hex(8)
        logs.bind(request=request_id)
        exchange = _Exchange(receive, send, request_id)
        method = scope.get("method", "WS")
        method = method if method in _METHODS else "other"
        start_s = time.monotonic()
        with traces.span(method, headers, request=request_id):
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception:
                exchange.status = (
                    exchange.status or _INTERNAL_ERROR
                )  # the framework is about to send it
                raise
            finally:
                route = getattr(scope.get("route"), "path", "other")
                traces.annotate(f"{method} {route}", status=exchange.status)
                metrics.request(method, route, _status(method, exchange.status))
                _log_request(
                    scope,
                    method=method,
                    route=route,
                    status=exchange.status,
                    duration_s=time.monotonic() - start_s,
                )


def _status(method: str, status: int) -> str:
    """HTTP statuses are ours; close codes are the client's, so only known ones become labels."""
    return str(status) if method != "WS" or status in _CLOSE_CODES or status < 1000 else "other"


class _Exchange:
    """One request's receive and send. ``status`` is HTTP's, or the WebSocket's close code."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self.status = 0  # until one is sent; the client may disconnect before

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect" and not self.status:
            self.status = message.get("code") or _ABNORMAL_CLOSURE
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


def _log_request(scope: Scope, *, method: str, route: str, status: int, duration_s: float) -> None:
    client = scope["client"][0] if scope.get("client") else "unknown"
    client = client if is_address(client) else "invalid"  # a proxy can forward any text
    path = scope.get("raw_path", b"").decode("latin-1")[:200]
    fields = {
        "client": client,
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(1e3 * duration_s, 1),
    }
    level = logging.DEBUG if route in _QUIET else logging.INFO
    log.log(
        level, "%s %s %s %d in %.0f ms", client, method, path, status, 1e3 * duration_s,
        extra={"fields": fields},
    )  # fmt: skip
