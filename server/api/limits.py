"""A request's body is measured while it is read.

A body that says that it is too large, or turns out to be, is answered with 413, and one that
stalls or trickles with 408. Before a refusal goes out, what is left of the body is read and thrown
away, up to a bound: a client that is still writing would otherwise see its connection reset
instead of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import metrics
from server.errors import ServiceError

_DRAIN_BYTES = 512 << 20
_DRAIN_S = 20.0
_PAUSE_S = 20.0  # between two pieces of a body
_GRACE_S, _SLOWEST = 30.0, 4096  # a body of N bytes may take _GRACE_S + N / _SLOWEST seconds


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
                raise _Refused(_too_large(self._max_bytes))
            await self._app(scope, body.receive, body.send)
        except _Refused as refused:
            await self._refuse(scope, body, refused.error)

    async def _refuse(self, scope: Scope, body: _Body, error: ServiceError) -> None:
        metrics.error(error.code)
        response = JSONResponse(
            error.problem(),
            error.kind.status,
            headers={"Connection": "close"},
            media_type="application/problem+json",
        )
        await response(scope, body.receive, body.send)


class _Refused(Exception):
    """Passes through the application, which has sent nothing yet: it was still reading."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.detail)
        self.error = error


def _too_large(most: int) -> ServiceError:
    return ServiceError("too_large", f"the request is larger than the {most} bytes allowed")


_TOO_SLOW = ServiceError(
    "timeout",
    f"the body paused for {_PAUSE_S:g} s, or came at less than {_SLOWEST} bytes a second",
)


class _Body:
    """One request's way in and out: counts what comes, and empties it before a refusal."""

    def __init__(
        self, receive: Receive, send: Send, max_bytes: int, headers: dict[bytes, bytes]
    ) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._total = 0
        self._ended = self._gone = False
        self._began_s = time.monotonic()
        self.declared = int(headers.get(b"content-length", b"0"))
        # Such a client waits for leave before it sends; to read would be to give it.
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()  # until the client hangs up
        slowest_s = self._began_s + _GRACE_S + self._total / _SLOWEST
        try:
            message = await self._next(min(time.monotonic() + _PAUSE_S, slowest_s))
        except TimeoutError as error:
            self._gone = True
            raise _Refused(_TOO_SLOW) from error
        if self._total > self._max_bytes:
            raise _Refused(_too_large(self._max_bytes))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await self._drain()
        await self._send(message)

    async def _next(self, deadline_s: float) -> Message:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            message = await self._receive()
        self._waits = False
        self._total += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        bound, deadline = self._total + _DRAIN_BYTES, time.monotonic() + _DRAIN_S
        with contextlib.suppress(TimeoutError):
            while not (self._ended or self._waits or self._gone) and self._total <= bound:
                await self._next(deadline)
