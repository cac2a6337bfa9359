"""Running the processes of the service: the API alone, or API, workers and Valkey together."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from server import process
from server.api.app import create_app
from server.api.connections import Connections, SeldomComplaints, protocols, raise_file_limit
from server.api.doors import is_loopback
from server.broker.embedded import EmbeddedServer, embedded_server, valkey_program
from server.broker.liveness import live_workers
from server.broker.redis import Connection, connect
from server.errors import SetupError
from server.settings import Settings
from server.supervisor import Supervisor, worker_count

log = logging.getLogger("fada.serve")

_LOOK_S = 0.05
_STOP_MARGIN_S = 5.0


class _Server(uvicorn.Server):
    """uvicorn that drains live sessions, too, within ``drain_s``, and leaves the rest to stop."""

    def __init__(self, config: uvicorn.Config, drain_s: float, connections: Connections) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._connections = connections

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(SeldomComplaints())
        watching = asyncio.create_task(self._connections.watch())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new and wait; uvicorn alone would cut every WebSocket at once."""
        end_s = time.monotonic() + self._drain_s
        for server in self.servers:
            server.close()
        for connection in self.server_state.connections - self._live():
            connection.shutdown()  # those that answer go on until they have
        while self._live() and not self.force_exit and time.monotonic() < end_s:
            await asyncio.sleep(_LOOK_S)
        self.config.timeout_graceful_shutdown = max(1, round(end_s - time.monotonic()))
        await super().shutdown(sockets)

    def _live(self) -> set[Any]:
        kind = self.config.ws_protocol_class
        return {c for c in self.server_state.connections if kind and isinstance(c, kind)}

    # uvicorn would raise the signal again when it is done, and so kill what is left to stop.
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _exit_in_order(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket; port 0 picks a free one. Raises `SetupError` when it cannot be had."""
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = stack.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            raise SetupError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
        yield sock


def serve_all(settings: Settings, sock: socket.socket, host: str) -> int:
    """`fada serve`: everything on this machine, until a signal. The exit status.

    ``sock`` is bound to ``host``.
    """
    signal.signal(signal.SIGTERM, _exit_in_order)
    if settings.redis_url is None:
        broker = embedded_server(valkey_program())
        with broker as server:
            return asyncio.run(_serve_all(settings, sock, host, server.url, server))
    return asyncio.run(_serve_all(settings, sock, host, settings.redis_url, None))


def serve_api(settings: Settings, url: str, sock: socket.socket, host: str) -> int:
    """`fada api`: the HTTP half alone, until a signal. The exit status."""
    signal.signal(signal.SIGTERM, _exit_in_order)
    return asyncio.run(_serve_api(settings, url, sock, host))


async def _serve_api(settings: Settings, url: str, sock: socket.socket, host: str) -> int:
    server = _server(settings, url, host)
    serving = asyncio.create_task(server.serve([sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(_LOOK_S)
    if server.started:
        _announce(sock)
    await serving
    return 0 if server.started else 1


async def _serve_all(
    settings: Settings, sock: socket.socket, host: str, url: str, valkey: EmbeddedServer | None
) -> int:
    async with connect(url) as connection:
        server = _server(settings, url, host)
        count = worker_count(settings.workers, process.usable_cores())
        supervisor = Supervisor(connection, url, count)
        serving = asyncio.create_task(server.serve([sock]))
        others = [
            asyncio.create_task(supervisor.watch()),
            asyncio.create_task(_ready(server, connection, sock)),
        ]
        if valkey is not None:
            others.append(asyncio.create_task(_outlive(valkey.child)))
        try:
            failure = await _until_stopped(serving, others)
            server.should_exit = True
            await serving
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await supervisor.stop(settings.drain_s + _STOP_MARGIN_S)
    if failure is not None:
        log.error("the service stops: %s", failure)
    return 0 if failure is None and server.started else 1


async def _until_stopped(
    serving: asyncio.Task[None], others: list[asyncio.Task[None]]
) -> BaseException | None:
    """Wait for the end of ``serving``, or for the failure of anything else, which is returned."""
    waiting = set(others)
    while not serving.done():
        done, _ = await asyncio.wait({serving, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in done & waiting:
            waiting.remove(task)
            error = task.exception()
            if isinstance(error, BaseExceptionGroup):
                return error.exceptions[0]
            if error is not None:
                return error
    return None


async def _ready(server: _Server, connection: Connection, sock: socket.socket) -> None:
    while not (server.started and await live_workers(connection)):
        await asyncio.sleep(_LOOK_S)
    _announce(sock)


async def _outlive(child: subprocess.Popen[bytes]) -> None:
    while child.poll() is None:
        await asyncio.sleep(_LOOK_S)
    raise RuntimeError(f"the embedded Valkey ended with {child.returncode}")


def _announce(sock: socket.socket) -> None:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"fada is ready on http://{shown}:{port}", flush=True)


def _server(settings: Settings, url: str, host: str) -> _Server:
    raise_file_limit()
    connections = Connections(
        settings.max_connections, settings.connections_per_address, settings.trusted_proxies
    )
    http, web_socket = protocols(connections)
    if not (settings.api_keys or is_loopback(host)):
        log.warning(
            "ANYBODY WHO REACHES %s MAY USE THIS SERVICE: set FADA_API_KEYS, or listen on "
            "127.0.0.1", host,
        )  # fmt: skip
    config = uvicorn.Config(
        create_app(settings, url, loopback=is_loopback(host)),
        log_config=None,  # its lines are lines like ours
        log_level="error",  # it warns of every malformed request
        access_log=False,  # `server.api.observe` writes it
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        http=http,
        ws=web_socket,
        ws_per_message_deflate=False,  # video and speech do not get smaller
    )
    return _Server(config, settings.drain_s, connections)
