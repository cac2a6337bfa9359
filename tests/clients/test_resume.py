"""The Python client goes on by itself when its connection or an API process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from fada_client import AsyncClient, Client, ConnectionLost, Done, Event, Fragment, InitSegment
from fada_client.progress import Progress

from server.broker.embedded import embedded_server, valkey_program
from tests.e2e.talker import eventually
from tests.server.media_files import picture
from tests.server.media_probe import probe
from tests.server.service import FAKE, Service, running, working
from tests.server.stream_client import pcm
from tests.server.tcp_proxy import Proxy, proxy_to

SECONDS, PIECE = 3.0, 1600
SOUND = pcm(SECONDS)


@dataclass
class Place:
    """A service that is reached through ``proxy``; ``settings`` are for another API process."""

    api: Service
    proxy: Proxy
    settings: dict[str, str]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        broker = stack.enter_context(embedded_server(valkey_program()))
        settings = {**FAKE, "FADA_REDIS_URL": broker.url}
        stack.enter_context(working(settings))
        api = stack.enter_context(running(settings, "api"))
        with api.client() as client:
            eventually(lambda: client.get("/readyz").status_code == 200, 60.0)
        yield Place(api, stack.enter_context(proxy_to(api.url)), settings)


def check(events: list[Event]) -> None:
    """Everything came once, in order, and is as long as the sound."""
    init, *rest = events
    assert isinstance(init, InitSegment) and isinstance(rest[-1], Done)
    fragments = [event for event in rest if isinstance(event, Fragment)]
    assert [fragment.index for fragment in fragments] == list(range(len(fragments)))
    video = probe(init.data + b"".join(fragment.data for fragment in fragments))
    assert video.sound_s == pytest.approx(SECONDS, abs=0.001)
    assert sum(isinstance(event, InitSegment) for event in events) == 1


def pieces() -> list[bytes]:
    return [SOUND[n : n + PIECE] for n in range(0, len(SOUND), PIECE)]


def test_a_connection_that_is_cut_again_and_again(place: Place) -> None:
    with (
        Client(place.proxy.url) as client,
        client.stream(portrait=picture(), size=128) as stream,
    ):
        before = place.proxy.connections

        def talk() -> None:
            for number, piece in enumerate(pieces()):
                if number in (10, 30):
                    place.proxy.cut()
                stream.push_audio(piece)
            stream.end()

        talking = threading.Thread(target=talk)
        talking.start()
        events = list[Event]()
        for event in stream:
            events.append(event)
            if len(events) in (5, 9):
                place.proxy.cut_after = 3000  # within a fragment
        talking.join()
    assert place.proxy.connections >= before + 3
    check(events)


def test_an_api_process_that_is_killed(place: Place) -> None:
    async def everything() -> list[Event]:
        async with (
            AsyncClient(place.proxy.url) as client,
            client.stream(portrait=picture(), size=128) as stream,
        ):
            place.proxy.target = place.api.url

            async def talk() -> None:
                for number, piece in enumerate(pieces()):
                    if number == 30:
                        os.kill(dying.process.pid, signal.SIGKILL)
                    await stream.push_audio(piece)
                    await asyncio.sleep(0)
                await stream.end()

            talking = asyncio.create_task(talk())
            events = [event async for event in stream]
            await talking
            return events

    with running(place.settings, "api") as dying:
        place.proxy.target = dying.url
        check(asyncio.run(everything()))


def test_a_session_that_cannot_be_resumed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_client.stream.RESUME_S", 0.5)
    with (
        Client(place.proxy.url) as client,
        client.stream(portrait=picture(), size=128) as stream,
        pytest.raises(ConnectionLost, match="cannot be resumed"),
    ):
        place.proxy.target = "http://127.0.0.1:9"  # nobody is there
        place.proxy.cut()
        list(stream)
    place.proxy.target = place.api.url


def test_more_than_is_kept_cannot_be_sent_again() -> None:
    progress = Progress()
    for _ in range(3):
        progress.sent(bytes(5 << 20))
    assert len(progress.missing('{"type": "resumed", "messages": 2}')) == 1
    with pytest.raises(ConnectionLost, match="more was lost"):
        progress.missing('{"type": "resumed", "messages": 0}')
