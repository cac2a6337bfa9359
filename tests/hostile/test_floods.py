"""Clients that send too much, too slowly or nothing cost little."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import psutil
import pytest
import uvicorn
from starlette.types import Message
from uvicorn.server import ServerState
from websockets.exceptions import ConnectionClosed

from server.api import limits
from server.api.connections import (
    HEADER_S,
    SEND_BYTES,
    SEND_S,
    Connections,
    CountedTransport,
    protocols,
)
from server.api.limits import BodyLimit
from tests.hostile.conftest import undisturbed
from tests.server.media_files import noise_picture, picture
from tests.server.service import Service, running
from tests.server.stream_client import pcm, stream_to


@pytest.fixture(scope="module")
def few(service: Service, broker: str) -> Iterator[Service]:
    """An API that allows few connections from one address."""
    settings = {"FADA_REDIS_URL": broker, "FADA_CONNECTIONS_PER_ADDRESS": "12"}
    with running(settings, "api") as api:
        yield api


def dialled(service: Service, words: bytes = b"") -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.sendall(words)
    return sock


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\nX-Slow: ", b"POST"])
def test_silent_connections_are_evicted_first(few: Service, words: bytes) -> None:
    with ExitStack() as stack, undisturbed(few.url):
        for _ in range(60):
            stack.enter_context(dialled(few, words))
            time.sleep(0.005)
        with few.client() as client:
            assert client.get("/healthz").status_code == 200
        assert len(psutil.Process(few.process.pid).net_connections()) < 30


class Wire:
    """A transport with a write buffer that the test sets."""

    def __init__(self) -> None:
        self.left, self.aborted = 0, False

    def write(self, data: bytes) -> None:
        self.left += len(data)

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


class Caller:
    def __init__(self, address: str) -> None:
        self.client = (address, 1)
        self.transport: Any = CountedTransport(Wire())  # type: ignore[arg-type]
        self.wire: Any = self.transport._transport


@pytest.mark.parametrize(
    ("exempt", "bounded"),
    [("*", False), ("10.0.2.0/24", False), ("10.0.2.2", False), ("10.0.3.0/24", True)],
)
def test_trusted_proxies_have_no_limit_of_their_own(exempt: str, bounded: bool) -> None:
    every = Connections(limit=0, limit_per_address=1, exempt=[exempt])
    crowd = [Caller("10.0.2.2") for _ in range(3)]
    for one in crowd:
        every.opened(one)
    assert any(one.transport.aborted for one in crowd) == bounded


def test_connection_deadlines_and_limits() -> None:
    async def everything() -> None:
        now_s = asyncio.get_running_loop().time()
        every = Connections(limit=5, limit_per_address=3, exempt=["10.0.0.1"])
        slow, quick, stuck, reading = (Caller(f"10.0.1.{n}") for n in range(4))
        for one in (slow, quick, stuck, reading):
            every.opened(one)
            every.waits(one)
        for one in (quick, stuck, reading):
            every.works(one)
        stuck.transport.write(bytes(100))
        reading.transport.write(bytes(2 * SEND_BYTES))
        every.check(now_s + 1)
        every.check(now_s + HEADER_S + 2)
        assert slow.transport.aborted and not quick.transport.aborted
        stuck.transport.write(b"pong")  # more waits, and nothing was read
        reading.wire.left -= SEND_BYTES
        every.check(now_s + SEND_S)
        every.check(now_s + SEND_S + 2)
        assert stuck.transport.aborted and not reading.transport.aborted
        every.closed(reading)
        every.closed(quick)
        # One too many from an address: the one that has waited longest is closed.
        crowd = [Caller("10.0.2.2") for _ in range(4)]
        for one in crowd:
            every.opened(one)
            every.waits(one)
        assert [one.transport.aborted for one in crowd] == [True, False, False, False]
        proxied = [Caller("10.0.0.1") for _ in range(4)]
        for one in proxied:  # no limit of its own, only the total
            every.opened(one)
        assert [one.transport.aborted for one in crowd] == [True, True, True, False]
        for one in crowd:
            every.works(one)
        last = Caller("10.0.3.3")
        every.opened(last)  # all others are in use
        assert last.transport.aborted

    asyncio.run(everything())


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def test_a_client_that_answers_no_ping_is_cut_while_more_waits_for_it() -> None:
    """Closing it would wait until it reads."""

    async def everything() -> None:
        ended = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            try:
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(1 << 20)})
            finally:
                ended.set()

        http, web_socket = protocols(Connections(limit=0, limit_per_address=0))
        config = uvicorn.Config(
            app, http=http, ws=web_socket, ws_ping_interval=0.1, ws_ping_timeout=0.1
        )
        config.load()
        state = ServerState()
        serve = partial(http, config=config, server_state=state, app_state={})
        server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
        async with server:
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                client.sendall(UPGRADE)
                await asyncio.wait_for(ended.wait(), 20)
                while state.connections:  # until the loop has closed the socket
                    await asyncio.sleep(0.01)

    asyncio.run(everything())


@pytest.mark.parametrize("refuses", [False, True])
def test_a_stalled_body_gets_a_response(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    """Whether the body is read or rejected first, the response is sent."""
    for name in ("_PAUSE_S", "_DRAIN_S"):
        monkeypatch.setattr(limits, name, 0.05)
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not refuses and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        if not came:
            came.append(True)
            return {"type": "http.request", "body": b"some", "more_body": True}
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    came: list[bool] = []
    scope = {"type": "http", "headers": [(b"content-length", b"100")]}
    asyncio.run(asyncio.wait_for(BodyLimit(app, 1000)(scope, receive, send), 10))
    assert sent[0]["status"] == (401 if refuses else 408)


def test_a_trickling_body_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_GRACE_S", 0.2)
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "headers": []}
    asyncio.run(asyncio.wait_for(BodyLimit(app, 1000)(scope, receive, send), 10))
    assert sent[0]["status"] == 408


def test_audio_and_interrupts_in_turn_evict_no_avatars(service: Service) -> None:
    """An interrupt drops audio, but only the worker can free its memory."""
    with service.client() as client:
        made = client.post("/avatars", files={"portrait": ("p.png", noise_picture(300))})
        before = broker_bytes(service)
        with undisturbed(service.url), stream_to(service.url) as attacker:
            attacker.start(sample_rate=48_000)
            attacker.until("ready")
            with suppress(ConnectionClosed):  # the connection may be cut at any moment
                for _ in range(400):  # 2 GB in total, if it were accepted
                    attacker.send_audio(pcm(50.0, 48_000))
                    attacker.send("interrupt")
            assert attacker.close_code() in (1009, 1006, 1000)
        assert client.get(f"/avatars/{made.json()['avatar_id']}").status_code == 200
        assert broker_bytes(service) - before < 100 << 20


def broker_bytes(service: Service) -> float:
    with service.client() as client:
        figures = client.get("/metrics").text
    (line,) = [ln for ln in figures.splitlines() if ln.startswith("fada_broker_memory_bytes ")]
    return float(line.split()[1])


def test_unfinished_messages_are_small(service: Service) -> None:
    memory = psutil.Process(service.process.pid).memory_info
    with ExitStack() as stack:
        streams = [stack.enter_context(stream_to(service.url)) for _ in range(10)]
        before = memory().rss
        for stream in streams:
            raw = stream.socket.socket
            head = b"\x02\xff" + (30 << 20).to_bytes(8, "big") + bytes(4)  # binary, not the last
            raw.settimeout(5)
            with suppress(OSError):  # cut before it was sent
                raw.sendall(head + bytes(4 << 20))
        time.sleep(0.5)
        assert memory().rss - before < 40 << 20


def test_empty_frames_without_end(service: Service) -> None:
    with undisturbed(service.url), stream_to(service.url) as stream:
        stream.start(portrait_file=picture())
        stream.until("ready")
        raw = stream.socket.socket
        with pytest.raises(OSError):
            raw.sendall(b"\x02\x80" + bytes(4))
            for _ in range(100):
                raw.sendall((b"\x00\x80" + bytes(4)) * 1000)
                time.sleep(0.01)
