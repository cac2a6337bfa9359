"""Connection limits and deadlines, below the application.

uvicorn waits for ever for the rest of a header and for a client that does not read. Here each
connection has a deadline for its next request and for progress of its writes, and the number of
connections is limited in total and per address. At a limit, the connection that has waited longest
for its request is closed; if none is waiting, the new one is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Protocol, cast

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

log = logging.getLogger("fada.serve")

HEADER_S = 15.0  # until a request's header is complete, from the connection or the last response
# While more waits to be sent, a client reads SEND_BYTES within SEND_S.
SEND_S, SEND_BYTES = 30.0, 16 << 10
_CHECK_S = 1.0
# A portrait of 1 MB in base64 and its options; audio follows `start`.
START_BYTES = 2 << 20
_MAX_FRAMES = 1024  # frames of one WebSocket message
_MAX_PONG_BYTES = 1 << 20  # unread by a client that keeps sending pings
_SPARE_FILES = 128  # descriptors for everything but connections
_ACCEPT_LOG_S = 60.0
BROKEN_OFF = 1006  # the code of a WebSocket that ends without a close frame
SET_MESSAGE_LIMIT = "fada.set_message_limit"  # in a WebSocket's scope: sets the limit, in bytes


class CountedTransport:
    """A transport that counts what is written to it; everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    @property
    def sent(self) -> int:
        """Bytes that have left the write buffer."""
        return self._written - int(self._transport.get_write_buffer_size())


class _Connection(Protocol):
    transport: Any  # a CountedTransport; uvicorn declares an asyncio.Transport
    client: tuple[str, int] | None


class Connections:
    """A server's connections: ``limit`` in total, ``limit_per_address`` from one address; 0: any.

    Addresses and networks in ``exempt`` (trusted proxies; *: all) have no limit of their own.
    `watch` must run.
    """

    def __init__(self, limit: int, limit_per_address: int, exempt: Collection[str] = ()) -> None:
        self._limit = min(limit or 1 << 30, max(1, _open_files() - _SPARE_FILES))
        self._limit_per_address, self._exempt = limit_per_address, exempt
        self._open: dict[_Connection, str] = {}
        self._per_address: Counter[str] = Counter()
        # Since when, the longest first.
        self._waiting: dict[_Connection, float] = {}
        self._stalled: dict[_Connection, tuple[int, float]] = {}

    def opened(self, connection: _Connection) -> None:
        """Count a new connection; beyond a limit, close another or this one."""
        address = connection.client[0] if connection.client else ""
        self._open[connection] = address
        self._per_address[address] += 1
        crowded = self._limit_per_address and self._per_address[address] > self._limit_per_address
        if crowded and not self._is_exempt(address):
            self._make_room(connection, address)
        elif len(self._open) > self._limit:
            self._make_room(connection, None)

    def waits(self, connection: _Connection) -> None:
        """The connection waits for a request from now on."""
        if connection in self._open:
            self._waiting.pop(connection, None)
            self._waiting[connection] = asyncio.get_running_loop().time()

    def works(self, connection: _Connection) -> None:
        """The connection's request has arrived."""
        self._waiting.pop(connection, None)

    def closed(self, connection: _Connection) -> None:
        """Stop counting a connection."""
        address = self._open.pop(connection, None)
        if address is None:
            return
        self._per_address[address] -= 1
        if not self._per_address[address]:
            del self._per_address[address]
        self._waiting.pop(connection, None)
        self._stalled.pop(connection, None)

    def _is_exempt(self, address: str) -> bool:
        if "*" in self._exempt or address in self._exempt:
            return True
        try:
            place = ipaddress.ip_address(address)
            return any(place in ipaddress.ip_network(one) for one in self._exempt if "/" in one)
        except ValueError:  # a Unix socket has no address
            return False

    async def watch(self) -> None:
        """Call `check` every second, for ever."""
        while True:
            await asyncio.sleep(_CHECK_S)
            self.check(asyncio.get_running_loop().time())

    def check(self, now_s: float) -> None:
        """Close the connections that are beyond a deadline at ``now_s``, in seconds."""
        for connection, since_s in list(self._waiting.items()):
            if now_s - since_s > HEADER_S:
                self._abort(connection)
        for connection in list(self._open):
            sent = connection.transport.sent
            before, since_s = self._stalled.get(connection, (-SEND_BYTES, now_s))
            if connection.transport.get_write_buffer_size() == 0:
                self._stalled.pop(connection, None)
            elif sent - before >= SEND_BYTES:  # what waits may grow meanwhile, as by pongs
                self._stalled[connection] = sent, now_s
            elif now_s - since_s > SEND_S:
                self._abort(connection)

    def _make_room(self, newcomer: _Connection, address: str | None) -> None:
        waiting = (
            one for one in self._waiting
            if one is not newcomer and address in (None, self._open[one])
        )  # fmt: skip
        self._abort(next(waiting, newcomer))

    def _abort(self, connection: _Connection) -> None:
        self.closed(connection)
        connection.transport.abort()


class _HTTP(H11Protocol):
    """uvicorn's HTTP connection, counted and with deadlines."""

    _all: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, CountedTransport(transport)))
        self._all.opened(self)
        self._all.waits(self)

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:
            self._all.works(self)

    def on_response_complete(self) -> None:
        cycle = self.cycle
        super().on_response_complete()
        if self.cycle is cycle:  # no pipelined request follows
            self._all.waits(self)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._all.closed(self)
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.closed(self)
        super().connection_lost(exc)


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, counted; messages are small until the application allows larger ones."""

    _all: Connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._all.opened(self)
        self.conn.max_message_size = START_BYTES

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            cast(dict[str, Any], scope)[SET_MESSAGE_LIMIT] = self._set_message_limit

    def _set_message_limit(self, max_bytes: int) -> None:
        self.conn.max_message_size = max_bytes

    def handle_cont(self, event: Any) -> None:
        super().handle_cont(event)
        if len(self.frames) > _MAX_FRAMES:
            self.transport.abort()

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > _MAX_PONG_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    def keepalive_timeout(self) -> None:
        if self.transport.get_write_buffer_size():  # closing would wait for the client to read it
            self.transport.abort()
        else:
            super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.closed(self)
        if self.handshake_complete and self.conn.close_rcvd is None:  # uvicorn's is for both
            self.queue.put_nowait({"type": "websocket.disconnect", "code": BROKEN_OFF})
        super().connection_lost(exc)


def protocols(connections: Connections) -> tuple[type[_HTTP], type[_WebSocket]]:
    """uvicorn's two protocol classes, bound to ``connections``."""
    http = type("HTTP", (_HTTP,), {"_all": connections})
    web_socket = type("WebSocket", (_WebSocket,), {"_all": connections})
    return http, web_socket


def raise_file_limit() -> None:
    """Raise the limit of open files to the most this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS reports a hard limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


class AcceptErrorLog:
    """An event loop's exception handler that logs failures to accept once a minute.

    asyncio logs a stack trace for each, which can be megabytes a second.
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "socket.accept()" not in str(context.get("message", "")):
            loop.default_exception_handler(context)
        elif loop.time() >= self._next_s:
            self._next_s = loop.time() + _ACCEPT_LOG_S
            log.error("cannot accept connections: %s", context.get("exception"))
