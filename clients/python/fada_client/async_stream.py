"""A live session of the client for asyncio: `fada_client.stream`, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from fada_client import wire
from fada_client.errors import ConnectionLost, FadaError
from fada_client.progress import RESUME_S, RETRY_S, Progress, cut_off, may_retry, not_resumed
from fada_client.types import Event, Ready

AsyncConnect = Callable[[float], Awaitable[ClientConnection]]  # within so many seconds


class AsyncStream(AsyncIterator[Event]):
    """See `Stream`."""

    ready: Ready

    def __init__(self, socket: ClientConnection, connect: AsyncConnect | None = None) -> None:
        """A session of ``socket``; without ``connect`` it ends with that."""
        self._socket, self._connect = socket, connect
        self._progress = Progress()
        self._lock = asyncio.Lock()  # of sending and reconnecting

    @classmethod
    async def begin(cls, connect: AsyncConnect, start: str, timeout_s: float) -> Self:
        """Start a session and wait until it is ready; ``connect`` raises `ConnectionLost`."""
        stream = cls(await connect(timeout_s), connect)
        try:
            with suppress(ConnectionClosed):  # refused at once: why is to be read
                await stream._socket.send(start)
            first = await anext(stream)
            if not isinstance(first, Ready):
                raise ConnectionLost(f"a session began with {type(first).__name__}")
        except BaseException:
            await stream.close()
            raise
        stream.ready = first
        return stream

    async def push_audio(self, pcm: bytes) -> None:
        await self._send(pcm)

    async def interrupt(self) -> None:
        await self._send(wire.message("interrupt"))

    async def update(self, **options: Any) -> None:
        await self._send(wire.message("update", **options))

    async def state(self, state: str) -> None:
        await self._send(wire.message("state", state=state))

    async def end(self) -> None:
        await self._send(wire.message("end"))

    async def close(self) -> None:
        await self._socket.close()

    async def __anext__(self) -> Event:
        while True:
            socket = self._socket
            try:
                received = await socket.recv()
            except ConnectionClosed as closed:
                await self._lost(socket, closed)
                continue
            event = self._progress.received(received)
            if event is not None:
                return event

    async def _lost(self, socket: ClientConnection, closed: ConnectionClosed) -> None:
        done = closed.rcvd is not None and closed.rcvd.code == 1000
        if done or self._progress.done:
            raise StopAsyncIteration from None
        async with self._lock:
            await self._replace(socket, closed)

    async def _send(self, data: str | bytes) -> None:
        async with self._lock:
            self._progress.sent(data)
            try:
                await self._socket.send(data)
            except ConnectionClosed as closed:
                await self._replace(self._socket, closed)

    async def _replace(self, socket: ClientConnection, closed: ConnectionClosed) -> None:
        if self._socket is not socket:
            return
        if self._connect is None or not (self._progress.resumable and cut_off(closed)):
            raise wire.lost(closed) from closed
        deadline_s = time.monotonic() + RESUME_S
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                await self._resume(await self._connect(left_s), left_s)
                return
            except (ConnectionLost, ConnectionClosed, TimeoutError) as error:
                if left_s < RETRY_S:
                    raise not_resumed(error) from error
            except FadaError as error:
                if not may_retry(error) or left_s < RETRY_S:
                    raise not_resumed(error) from error
            await asyncio.sleep(RETRY_S)

    async def _resume(self, socket: ClientConnection, timeout_s: float) -> None:
        try:
            await socket.send(self._progress.resume_message())
            async with asyncio.timeout(timeout_s):
                answer = await socket.recv()
            for data in self._progress.missing(answer):
                await socket.send(data)
        except BaseException:
            socket.transport.abort()  # without a close frame, which would end the session
            raise
        self._socket = socket
