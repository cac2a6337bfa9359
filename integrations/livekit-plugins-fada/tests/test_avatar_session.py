"""`AvatarSession` with LiveKit's own `AgentSession`, in the agent's process and over a bridge."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestServer
from conftest import KEY, PORTRAIT, ROOT, Service
from fada_client import AsyncStream
from helpers import chunks, run, severable, tone
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.plugins.fada import AvatarSession, FadaException
from livekit.plugins.fada.avatar import face_state
from livekit.plugins.fada.bridge import Bridge, BridgeSettings
from room import Room
from viewer import Viewer

BRIDGE_KEY = "a-key-of-the-bridge"
LIVEKIT = {
    "livekit_url": "wss://livekit.example",
    "livekit_api_key": "key",
    "livekit_api_secret": "a-secret-that-is-long-enough-for-hs256",
}


async def voice(seconds: float) -> AsyncIterator[rtc.AudioFrame]:
    for frame in chunks(tone(seconds)):
        yield frame


@asynccontextmanager
async def agent_with(
    avatar: AvatarSession, room: Room, **livekit: str
) -> AsyncIterator[AgentSession]:
    """An agent whose voice is a file: it needs no key."""
    session: AgentSession[Any] = AgentSession()
    await avatar.start(session, room, **livekit)  # type: ignore[arg-type]
    await session.start(Agent(instructions="Speak."))
    try:
        yield session
    finally:
        await session.aclose()
        await avatar.aclose()


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def watched(room: Room) -> Viewer:
    await until(lambda: len(room.local_participant.track_publications) == 2)
    viewer = Viewer()
    viewer.subscribe(room.local_participant.track_publications)
    return viewer


def heard_s(viewer: Viewer) -> float:
    loud = [samples for _, samples in viewer.sounds if np.abs(samples).max() > 2000]
    return sum(len(samples) for samples in loud) / 48_000


def test_an_agent_speaks_through_its_avatar(service: Service, tmp_path: Path) -> None:
    portrait = tmp_path / "portrait.png"
    portrait.write_bytes(PORTRAIT)

    async def work() -> None:
        room = Room({}, "agent").join()
        avatar = AvatarSession(
            portrait=portrait, api_url=service.url, api_key=KEY, options={"size": 128}
        )
        async with agent_with(avatar, room) as session:
            assert avatar.avatar_identity == "agent" and avatar.provider == "fada"
            await avatar.wait_for_join(timeout=5)
            viewer = await watched(room)
            await session.say("Hello.", audio=voice(1.0)).wait_for_playout()
            assert heard_s(viewer) == pytest.approx(1.0, abs=0.1)
            speech = session.say("A long story.", audio=voice(20.0))
            await until(lambda: heard_s(viewer) > 1.5)
            await session.interrupt()
            await speech.wait_for_playout()
            assert speech.interrupted
            before_s = heard_s(viewer)
            await session.say("Yes?", audio=voice(0.5)).wait_for_playout()
            assert heard_s(viewer) - before_s == pytest.approx(0.5, abs=0.1)
            await viewer.aclose()

    run(work())


def test_the_example_answers_with_its_file(service: Service) -> None:
    path = ROOT / "integrations/livekit-plugins-fada/examples/agent.py"
    spec = importlib.util.spec_from_file_location("example_agent", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    async def work() -> None:
        room = Room({}, "agent")  # as in a job: it is connected later
        avatar = AvatarSession(
            portrait=PORTRAIT, api_url=service.url, api_key=KEY, options={"size": 128}
        )
        async with agent_with(avatar, room) as session:
            example.answer(session, example.SPEECH)
            viewer = await watched(room.join())
            session._update_user_state("speaking")
            session._update_user_state("listening")
            await until(lambda: heard_s(viewer) > 0.3)
            await session.interrupt()
            await viewer.aclose()

    run(work())


def test_states_go_to_the_avatar(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    send = AsyncStream.state

    async def state(stream: AsyncStream, name: str) -> None:
        told.append(name)
        await send(stream, name)

    monkeypatch.setattr(AsyncStream, "state", state)

    async def work() -> None:
        room = Room({}, "agent").join()
        avatar = AvatarSession(
            portrait=PORTRAIT, api_url=service.url, api_key=KEY, options={"size": 128}
        )
        async with agent_with(avatar, room) as session:
            session._update_user_state("speaking")
            await until(lambda: told == ["listening"])
            session._update_agent_state("thinking")  # the user still speaks
            session._update_user_state("listening")
            await until(lambda: told == ["listening", "thinking"])
            session._update_agent_state("speaking")
            await until(lambda: told == ["listening", "thinking", "idle"])

    run(work())
    assert face_state("listening", "away") == "idle"


def test_an_agent_whose_avatar_breaks_off_is_told_and_goes_on(service: Service) -> None:
    async def work() -> FadaException:
        room, errors = Room({}, "agent").join(), list[FadaException]()
        async with severable(service) as (url, cut):
            avatar = AvatarSession(
                portrait=PORTRAIT, api_url=url, api_key=KEY, options={"size": 128}
            )
            avatar.on("error", errors.append)
            async with agent_with(avatar, room) as session:
                viewer = await watched(room)
                speech = session.say("A story.", audio=voice(5.0))
                await until(lambda: heard_s(viewer) > 0.3)
                cut()
                await asyncio.wait_for(speech.wait_for_playout(), 3)
                await asyncio.wait_for(session.say("More.", audio=voice(1.0)).wait_for_playout(), 3)
                await viewer.aclose()
        (error,) = errors
        return error

    assert run(work()).code == "connection_lost"


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setenv("FADA_AVATAR_ID", "of-the-environment")
        monkeypatch.setenv("FADA_API_URL", "http://fada.example")
        monkeypatch.setenv("FADA_API_KEY", "secret")
        avatar = AvatarSession()
        assert (avatar._avatar_id, avatar._api_url) == ("of-the-environment", "http://fada.example")
        assert (
            avatar._api_key == "secret" and AvatarSession(avatar_id="given")._avatar_id == "given"
        )
        assert AvatarSession(portrait=PORTRAIT)._avatar_id is None
        monkeypatch.delenv("FADA_AVATAR_ID")
        with pytest.raises(FadaException, match="avatar_id"):
            AvatarSession()
        with pytest.raises(FadaException, match="either"):
            AvatarSession(avatar_id="a", portrait=PORTRAIT)
        with pytest.raises(FadaException, match="FADA_LIVEKIT_BRIDGE_KEY"):
            AvatarSession(avatar_id="a", worker_url="http://bridge.example")

    run(work())


def test_what_cannot_start_leaves_the_agent_as_it_was(service: Service) -> None:
    async def work() -> None:
        session: AgentSession[Any] = AgentSession()
        avatar = AvatarSession(avatar_id="0" * 24, api_url=service.url, api_key=KEY)
        with pytest.raises(FadaException) as caught:
            await avatar.start(session, Room({}, "agent").join())  # type: ignore[arg-type]
        assert caught.value.code == "not_found" and session.output.audio is None

    run(work())


@asynccontextmanager
async def bridge(
    service: Service, members: dict[str, Room]
) -> AsyncIterator[tuple[str, list[str]]]:
    """A bridge on a real socket, and the LiveKit servers that it joined."""
    joined: list[str] = []

    async def join(url: str, token: str) -> Any:
        joined.append(url)
        return Room(members, "fada-avatar-agent").join()

    settings = BridgeSettings(
        key=BRIDGE_KEY,
        hosts=frozenset({"livekit.example"}),
        api_url=service.url,
        api_key=KEY,
    )
    async with TestServer(Bridge(settings, join).app()) as server:
        yield str(server.make_url("")), joined


def test_over_a_bridge_the_avatar_is_a_participant_of_its_own(service: Service) -> None:
    async def work() -> None:
        members: dict[str, Room] = {}
        room = Room(members, "agent").join()
        async with bridge(service, members) as (url, joined):
            avatar = AvatarSession(
                portrait=PORTRAIT, options={"size": 128}, worker_url=url, worker_key=BRIDGE_KEY
            )
            async with agent_with(avatar, room, **LIVEKIT) as session:
                assert joined == ["wss://livekit.example"]
                worker = members[avatar.avatar_identity]
                viewer = await watched(worker)
                await session.say("Hello.", audio=voice(0.6)).wait_for_playout()
                assert heard_s(viewer) == pytest.approx(0.6, abs=0.1)
                session._update_user_state("speaking")
                speech = session.say("A long story.", audio=voice(20.0))
                await until(lambda: heard_s(viewer) > 1.0)
                await session.interrupt()
                await asyncio.wait_for(speech.wait_for_playout(), 1)
                await until(lambda: ("fada.state", "listening") in worker.local_participant.calls)
                # A second avatar for the same agent would share LiveKit's handlers with the first.
                second = AvatarSession(portrait=PORTRAIT, worker_url=url, worker_key=BRIDGE_KEY)
                with pytest.raises(FadaException, match="409"):
                    await second.start(AgentSession(), room, **LIVEKIT)  # type: ignore[arg-type]
                await viewer.aclose()
            await room.disconnect()
            await until(lambda: "fada-avatar-agent" not in members)

    run(work())


def test_a_bridge_answers_only_with_its_key_and_joins_only_allowed_servers(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def work() -> None:
        members: dict[str, Room] = {}
        room = Room(members, "agent").join()
        async with bridge(service, members) as (url, joined), aiohttp.ClientSession() as http:

            async def launch(key: str = BRIDGE_KEY, **changes: Any) -> int:
                avatar = AvatarSession(avatar_id="0" * 24, worker_url=url, worker_key=key)
                token = avatar._token(room, "key", LIVEKIT["livekit_api_secret"])  # type: ignore[arg-type]
                request = {
                    "livekit_url": "wss://livekit.example",
                    "livekit_token": token,
                    "room_name": "room",
                    "avatar_id": "0" * 24,
                    **changes,
                }
                headers = {"Authorization": f"Bearer {key}"}
                async with http.post(f"{url}/launch", json=request, headers=headers) as answer:
                    assert (await answer.json())["code"]
                    return answer.status

            async with http.get(f"{url}/ready") as answer:
                assert answer.status == 401
            own = {"Authorization": f"Bearer {BRIDGE_KEY}"}
            async with http.get(f"{url}/ready", headers=own) as answer:
                assert await answer.json() == {"status": "ready", "avatars": 0}
            assert await launch("another key") == 401
            for other in (
                "wss://other.example",
                "wss://livekit.example.other.example",
                "wss://livekit.example@other.example",
                "wss://other.example/livekit.example",
                "file://livekit.example/",
                "wss://[::1",
            ):
                assert await launch(livekit_url=other) == 403
            assert await launch(room_name="another room") == 400
            assert await launch(livekit_token="no token") == 400
            assert await launch(unknown=1) == 400
            assert await launch(avatar_id=None, portrait="not base64!") == 400
            assert await launch() == 404  # the service has no such avatar
            assert await launch(avatar_id=None, portrait="AAAA") == 415
            assert joined == []

    run(work())
