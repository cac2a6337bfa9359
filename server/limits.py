"""A request's body is measured while it is read. Knows ASGI messages; not what they carry.

A body that says that it is too large, or turns out to be, is answered with 413. Before this or
any other refusal goes out, what is left of the body is read and thrown away, up to a bound: a
client that is still writing would otherwise see its connection reset instead of the answer.
"""

from __future__ import annotations

import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import metrics
from server.errors import ServiceError

_DRAIN_BYTES = 512 << 20
_DRAIN_S = 20.0


class BodyLimit:
    """ASGI middleware: ``max_bytes`` for each request's body."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, self._max_bytes, dict(scope["headers"]))
        try:
            if body.declared > self._max_bytes:
                raise _TooLarge
            await self._app(scope, body.receive, body.send)
        except _TooLarge:
            await self._refuse(scope, body)

    async def _refuse(self, scope: Scope, body: _Body) -> None:
        error = ServiceError(
            "too_large", f"the request is larger than the {self._max_bytes} bytes allowed"
        )
        metrics.error(error.code)
        response = JSONResponse(
            error.problem(),
            error.kind.status,
            headers={"Connection": "close"},
            media_type="application/problem+json",
        )
        await response(scope, body.receive, body.send)


class _TooLarge(Exception):
    """Passes through the application, which has sent nothing yet: it was still reading."""


class _Body:
    """One request's way in and out: counts what comes, and empties it before a refusal."""

    def __init__(
        self, receive: Receive, send: Send, max_bytes: int, headers: dict[bytes, bytes]
    ) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._total = 0
        self._ended = False
        self.declared = int(headers.get(b"content-length", b"0"))
        # Such a client waits for leave before it sends; to read would be to give it.
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"

    async def receive(self) -> Message:
        message = await self._next()
        if self._total > self._max_bytes:
            raise _TooLarge
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await self._drain()
        await self._send(message)

    async def _next(self) -> Message:
        message = await self._receive()
        self._waits = False
        self._total += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        bound, deadline = self._total + _DRAIN_BYTES, time.monotonic() + _DRAIN_S
        while not self._ended and not self._waits:
            if self._total > bound or time.monotonic() > deadline:
                return
            await self._next()
