"""A request's body is measured while it is read. Knows ASGI messages; not what they carry.

A body that says that it is too large, or turns out to be, is answered with 413. What is left of
it is read and thrown away first, up to a bound: a client that is still writing would otherwise
see its connection reset instead of the answer.
"""

from __future__ import annotations

import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
        headers = dict(scope["headers"])
        declared = int(headers.get(b"content-length", b"0"))
        if declared > self._max_bytes:
            if headers.get(b"expect", b"").lower() != b"100-continue":
                await _drain(receive)
            await self._refuse(scope, receive, send)
            return
        try:
            await self._app(scope, self._counted(receive), send)
        except _TooLarge:
            await _drain(receive)
            await self._refuse(scope, receive, send)

    def _counted(self, receive: Receive) -> Receive:
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_bytes:
                raise _TooLarge
            return message

        return counted

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ServiceError(
            "too_large", f"the request is larger than the {self._max_bytes} bytes allowed"
        )
        response = JSONResponse(
            error.problem(),
            error.kind.status,
            headers={"Connection": "close"},
            media_type="application/problem+json",
        )
        await response(scope, receive, send)


class _TooLarge(Exception):
    """Passes through the application, which has sent nothing yet: it was still reading."""


async def _drain(receive: Receive) -> None:
    total, deadline = 0, time.monotonic() + _DRAIN_S
    while total < _DRAIN_BYTES and time.monotonic() < deadline:
        message = await receive()
        total += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
