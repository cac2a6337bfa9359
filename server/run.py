"""Runs the service's processes: the API alone, or the API, workers and Valkey together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from server import process
from server.api.app import create_app
from server.api.connections import AcceptErrorLog, Connections, protocols, raise_file_limit
from server.api.origins import is_loopback
from server.broker.embedded import EmbeddedServer, embedded_server, valkey_program
from server.broker.folder import PRIVATE
from server.broker.liveness import live_workers
from server.broker.redis import Connection, connect, service_name
from server.errors import SetupError
from server.settings import Settings
from server.supervisor import Supervisor, worker_count
from server.tasks import background, cancel_and_wait

log = logging.getLogger("fada.serve")

_POLL_S = 0.05
_STOP_MARGIN_S = 5.0


class _Server(uvicorn.Server):
    """uvicorn that also drains WebSockets, for at most ``drain_s`` seconds."""

    def __init__(self, config: uvicorn.Config, drain_s: float, connections: Connections) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._connections = connections

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(AcceptErrorLog())
        async with background(self._connections.watch()):
            await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, then wait; uvicorn alone would close every WebSocket at once."""
        end_s = time.monotonic() + self._drain_s
        for server in self.servers:
            server.close()
        for connection in self.server_state.connections - self._web_sockets():
            connection.shutdown()  # those in mid-response finish it
        while self._web_sockets() and not self.force_exit and time.monotonic() < end_s:
            await asyncio.sleep(_POLL_S)
        self.config.timeout_graceful_shutdown = max(1, round(end_s - time.monotonic()))
        await super().shutdown(sockets)

    def _web_sockets(self) -> set[Any]:
        kind = self.config.ws_protocol_class
        return {c for c in self.server_state.connections if kind and isinstance(c, kind)}

    # uvicorn would raise the signal again when done and kill us before we have stopped the rest.
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _raise_exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket to ``host`` and ``port`` (0: a free one); raises `SetupError` on failure."""
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
    """`fada serve`: run everything on this machine until a signal; return the exit status.

    ``sock`` is bound to ``host``.
    """
    signal.signal(signal.SIGTERM, _raise_exit)
    settings = settings.model_copy(update={"data": settings.data or _cache_folder()})
    if settings.redis_url is None:
        with embedded_server(valkey_program()) as valkey:
            return asyncio.run(_serve_all(settings, sock, host, url=valkey.url, valkey=valkey))
    return asyncio.run(_serve_all(settings, sock, host, url=settings.redis_url))


def _cache_folder() -> Path | None:
    """A folder in the user's cache; ``None`` where there is none to write to."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(cache) / "fada" / "data"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError) as error:  # a RuntimeError for a user without a home
        log.warning("large videos are not kept, unless FADA_DATA is set: %s", error)
        return None
    return path


def serve_api(settings: Settings, sock: socket.socket, host: str, *, url: str) -> int:
    """`fada api`: run the HTTP half alone until a signal; return the exit status."""
    signal.signal(signal.SIGTERM, _raise_exit)
    return asyncio.run(_serve_api(_server(settings, url, host), sock))


async def _serve_api(server: _Server, sock: socket.socket) -> int:
    serving = asyncio.create_task(server.serve([sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL_S)
    if server.started:
        _announce(sock)
    await serving
    return 0 if server.started else 1


async def _serve_all(
    settings: Settings,
    sock: socket.socket,
    host: str,
    *,
    url: str,
    valkey: EmbeddedServer | None = None,
) -> int:
    async with connect(url) as connection:
        if valkey is not None:  # what it refers to on disk goes when it does
            await service_name(connection.redis, PRIVATE + secrets.token_hex(8))
        server = _server(settings, url, host)
        devices = settings.devices or (() if settings.pipeline else process.visible_gpus())
        count = worker_count(settings.workers, process.usable_cores(), len(devices))
        supervisor = Supervisor(connection, url, count, devices=devices, data=settings.data)
        serving = asyncio.create_task(server.serve([sock]))
        watchers = [
            asyncio.create_task(supervisor.watch()),
            asyncio.create_task(_announce_when_ready(server, connection, sock)),
        ]
        if valkey is not None:
            watchers.append(asyncio.create_task(_raise_on_exit(valkey.child)))
        try:
            failure = await _until_stopped(serving, watchers)
            server.should_exit = True
            await serving
        finally:
            await cancel_and_wait(watchers)
            await supervisor.stop(settings.drain_s + _STOP_MARGIN_S)
    if failure is not None:
        log.error("stopping: %s", failure)
    return 0 if failure is None and server.started else 1


async def _until_stopped(
    serving: asyncio.Task[None], watchers: list[asyncio.Task[None]]
) -> BaseException | None:
    """Wait until ``serving`` ends or a watcher fails; return the failure."""
    waiting = set(watchers)
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


async def _announce_when_ready(
    server: _Server, connection: Connection, sock: socket.socket
) -> None:
    while not (server.started and await live_workers(connection)):
        await asyncio.sleep(_POLL_S)
    _announce(sock)


async def _raise_on_exit(child: subprocess.Popen[bytes]) -> None:
    while child.poll() is None:
        await asyncio.sleep(_POLL_S)
    raise RuntimeError(f"the embedded Valkey exited with {child.returncode}")


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
            "ANYONE WHO CAN REACH %s CAN USE THIS SERVICE: set FADA_API_KEYS, or listen on "
            "127.0.0.1", host,
        )  # fmt: skip
    config = uvicorn.Config(
        create_app(settings, url, loopback=is_loopback(host)),
        log_config=None,  # it logs through our handler
        log_level="error",  # it warns about every malformed request
        access_log=False,  # `server.api.telemetry` writes one
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        http=http,
        ws=web_socket,
        ws_per_message_deflate=False,  # video and speech do not compress
    )
    return _Server(config, settings.drain_s, connections)
