"""A live session of the blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection

from fada_client import wire
from fada_client.errors import ConnectionLost, FadaError
from fada_client.progress import RESUME_S, RETRY_S, Progress, cut_off, may_retry, not_resumed
from fada_client.types import Event, Ready

Connect = Callable[[float], ClientConnection]  # within so many seconds


class Stream(Iterator[Event]):
    """A live session; iterate over it for its events. ``ready`` is its first one.

    A connection that is lost is replaced; nothing is lost or doubled.
    """

    def __init__(self, connect: Connect, start: str, timeout_s: float) -> None:
        """``connect`` raises `ConnectionLost`."""
        self._connect = connect
        self._progress = Progress()
        self._lock = threading.RLock()  # of sending and reconnecting
        self._socket = connect(timeout_s)
        try:
            with suppress(ConnectionClosed):  # refused at once: why is to be read
                self._socket.send(start)
            first = next(self)
            if not isinstance(first, Ready):
                raise ConnectionLost(f"a session began with {type(first).__name__}")
        except BaseException:
            self.close()
            raise
        self.ready = first

    def push_audio(self, pcm: bytes) -> None:
        """s16le mono at the session's sample rate, of any length."""
        self._send(pcm)

    def interrupt(self) -> None:
        """Drop the sound that was pushed before this."""
        self._send(wire.message("interrupt"))

    def update(self, **options: Any) -> None:
        """Change options from the next window on."""
        self._send(wire.message("update", **options))

    def state(self, state: str) -> None:
        """How the avatar behaves while it does not speak: listening, thinking or idle."""
        self._send(wire.message("state", state=state))

    def end(self) -> None:
        """No more sound: the session ends after the last of it."""
        self._send(wire.message("end"))

    def close(self) -> None:
        """End the session; `Client.stream` does so after its block."""
        self._socket.close()

    def __next__(self) -> Event:
        while True:
            socket = self._socket
            try:
                received = socket.recv()
            except ConnectionClosed as closed:
                self._lost(socket, closed)
                continue
            event = self._progress.received(received)
            if event is not None:
                return event

    def _lost(self, socket: ClientConnection, closed: ConnectionClosed) -> None:
        """Go on with another connection; raises ``StopIteration`` after the session's end."""
        done = closed.rcvd is not None and closed.rcvd.code == 1000
        if done or self._progress.done:
            raise StopIteration from None
        with self._lock:
            self._replace(socket, closed)

    def _send(self, data: str | bytes) -> None:
        with self._lock:
            self._progress.sent(data)
            try:
                self._socket.send(data)
            except ConnectionClosed as closed:
                self._replace(self._socket, closed)

    def _replace(self, socket: ClientConnection, closed: ConnectionClosed) -> None:
        """Resume on a new connection, unless another thread has done so."""
        if self._socket is not socket:
            return
        if not (self._progress.resumable and cut_off(closed)):
            raise wire.lost(closed) from closed
        deadline_s = time.monotonic() + RESUME_S
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                self._resume(left_s)
                return
            except (ConnectionLost, ConnectionClosed, TimeoutError) as error:
                if left_s < RETRY_S:
                    raise not_resumed(error) from error
            except FadaError as error:
                if not may_retry(error) or left_s < RETRY_S:
                    raise not_resumed(error) from error
            time.sleep(RETRY_S)

    def _resume(self, timeout_s: float) -> None:
        socket = self._connect(timeout_s)
        try:
            socket.send(self._progress.resume_message())
            for data in self._progress.missing(socket.recv(timeout_s)):
                socket.send(data)
        except BaseException:
            with suppress(WebSocketException):
                socket.socket.close()  # without a close frame, which would end the session
            raise
        self._socket = socket
