"""Limits on the size and duration of request bodies.

A body that is declared or turns out to be too large gets 413, one that stalls or trickles 408.
Before such a response, the rest of the body is read and discarded up to a limit: a client that is
still sending would otherwise see a connection reset instead of the response.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.problems import problem_response
from server.errors import ServiceError

_DRAIN_BYTES = 512 << 20
_DRAIN_S = 20.0
_PAUSE_S = 20.0  # between two chunks of a body
# A body of N bytes may take _GRACE_S + N / _MIN_BYTES_PER_S seconds.
_GRACE_S, _MIN_BYTES_PER_S = 30.0, 4096


class BodyLimit:
    """ASGI middleware that allows each request a body of ``max_bytes``."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, dict(scope["headers"]), max_bytes=self._max_bytes)
        try:
            if body.declared > self._max_bytes:
                raise _Rejected(_too_large(self._max_bytes))
            await self._app(scope, body.receive, body.send)
        except _Rejected as rejected:
            headers = {"Connection": "close"}
            response = problem_response(rejected.error, headers)
            await response(scope, body.receive, body.send)


class _Rejected(Exception):
    """Unwinds the application, which was still reading and has sent nothing yet."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.detail)
        self.error = error


def _too_large(max_bytes: int) -> ServiceError:
    return ServiceError("too_large", f"the body is too large, expected at most {max_bytes} bytes")


_TOO_SLOW = ServiceError(
    "timeout",
    f"the body stalled for {_PAUSE_S:g} s, or took longer than {_MIN_BYTES_PER_S} bytes/s allows",
)


class _Body:
    """One request's receive and send; counts the body and drains it before an error response."""

    def __init__(
        self, receive: Receive, send: Send, headers: dict[bytes, bytes], *, max_bytes: int
    ) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._total = 0
        self._ended = self._timed_out = False
        self._start_s = time.monotonic()
        self.declared = int(headers.get(b"content-length", b"0"))
        # Such a client sends no body before it gets "100 Continue", which reading would send.
        self._expects_continue = headers.get(b"expect", b"").lower() == b"100-continue"

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()  # until the client disconnects
        deadline_s = self._start_s + _GRACE_S + self._total / _MIN_BYTES_PER_S
        try:
            message = await self._next(min(time.monotonic() + _PAUSE_S, deadline_s))
        except TimeoutError as error:
            self._timed_out = True
            raise _Rejected(_TOO_SLOW) from error
        if self._total > self._max_bytes:
            raise _Rejected(_too_large(self._max_bytes))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await self._drain()
        await self._send(message)

    async def _next(self, deadline_s: float) -> Message:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            message = await self._receive()
        self._expects_continue = False
        self._total += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        max_bytes, deadline_s = self._total + _DRAIN_BYTES, time.monotonic() + _DRAIN_S
        with contextlib.suppress(TimeoutError):
            while self._total <= max_bytes and not (
                self._ended or self._expects_continue or self._timed_out
            ):
                await self._next(deadline_s)
