"""Connections that cost little: deadlines and bounds below the application.

uvicorn waits for ever for the rest of a header and for a client that does not read. Here each
connection has a deadline for its next request and for every write to get on, and there is a bound
of connections in all and from each address. When a bound is reached, the connection that has
waited longest for its request makes room; only where all are in use the new one is closed.
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

HEADER_S = 15.0  # for the first request's header to be there, and for the next one's
SEND_S = 30.0  # without a byte taken by the client
_LOOK_S = 1.0
# A portrait of 1 MB in base64 and its options; sound comes after `start`.
START_BYTES = 2 << 20
_MAX_FRAMES = 1024  # of one WebSocket message
_MAX_PONG_BYTES = 1 << 20  # not taken by a client that goes on sending pings
_SPARE_FILES = 128  # descriptors for everything but connections
_COMPLAIN_S = 60.0
LIMIT = "fada.limit"  # in a WebSocket's scope: sets the most bytes of a message


class _Connection(Protocol):
    transport: asyncio.Transport
    client: tuple[str, int] | None


class Connections:
    """All of a server's, ``most`` in all and ``most_each`` from one address.

    Addresses and networks in ``exempt`` (proxies', *: all) have no bound of their own. 0: no bound.
    `watch` must run.
    """

    def __init__(self, most: int, most_each: int, exempt: Collection[str] = ()) -> None:
        self._most = min(most or 1 << 30, max(1, _open_files() - _SPARE_FILES))
        self._most_each, self._exempt = most_each, exempt
        self._open: dict[_Connection, str] = {}
        self._each: Counter[str] = Counter()
        # Since when, the longest first.
        self._waiting: dict[_Connection, float] = {}
        self._stalled: dict[_Connection, tuple[int, float]] = {}

    def opened(self, connection: _Connection) -> None:
        """Count it, and close another or this one when there are too many."""
        address = connection.client[0] if connection.client else ""
        self._open[connection] = address
        self._each[address] += 1
        crowded = self._most_each and self._each[address] > self._most_each
        if crowded and not self._is_exempt(address):
            self._make_room(connection, address)
        elif len(self._open) > self._most:
            self._make_room(connection, None)

    def waits(self, connection: _Connection) -> None:
        """From now on it waits for a request."""
        if connection in self._open:
            self._waiting.pop(connection, None)
            self._waiting[connection] = asyncio.get_running_loop().time()

    def works(self, connection: _Connection) -> None:
        """Its request is there."""
        self._waiting.pop(connection, None)

    def closed(self, connection: _Connection) -> None:
        address = self._open.pop(connection, None)
        if address is None:
            return
        self._each[address] -= 1
        if not self._each[address]:
            del self._each[address]
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
        """Close what is beyond its deadline, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look(asyncio.get_running_loop().time())

    def look(self, now_s: float) -> None:
        """Close what is beyond its deadline at ``now_s``."""
        for connection, since_s in list(self._waiting.items()):
            if now_s - since_s > HEADER_S:
                self._abort(connection)
        for connection in list(self._open):
            left = connection.transport.get_write_buffer_size()
            before, since_s = self._stalled.get(connection, (0, now_s))
            if left == 0:
                self._stalled.pop(connection, None)
            elif left != before:
                self._stalled[connection] = left, now_s
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
    """Counted and timed from its first byte on."""

    _all: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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
        if self.cycle is cycle:  # no further request came along with this one
            self._all.waits(self)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._all.closed(self)
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.closed(self)
        super().connection_lost(exc)


class _WebSocket(WebSocketsSansIOProtocol):
    """Counted; messages are small until the application allows more."""

    _all: Connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._all.opened(self)
        self.conn.max_message_size = START_BYTES

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            cast(dict[str, Any], scope)[LIMIT] = self._limit

    def _limit(self, most: int) -> None:
        self.conn.max_message_size = most

    def handle_cont(self, event: Any) -> None:
        super().handle_cont(event)
        if len(self.frames) > _MAX_FRAMES:
            self.transport.abort()

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > _MAX_PONG_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.closed(self)
        super().connection_lost(exc)


def protocols(connections: Connections) -> tuple[type[_HTTP], type[_WebSocket]]:
    """uvicorn's two protocols, counted in ``connections``."""
    http = type("HTTP", (_HTTP,), {"_all": connections})
    web_socket = type("WebSocket", (_WebSocket,), {"_all": connections})
    return http, web_socket


def raise_file_limit() -> None:
    """As many descriptors as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


class SeldomComplaints:
    """An event loop's exception handler: that no connection can be accepted is said once a minute.

    asyncio says it with a stack for every try, which makes megabytes a second.
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "socket.accept()" not in str(context.get("message", "")):
            loop.default_exception_handler(context)
        elif loop.time() >= self._next_s:
            self._next_s = loop.time() + _COMPLAIN_S
            log.error("no connection can be accepted: %s", context.get("exception"))
