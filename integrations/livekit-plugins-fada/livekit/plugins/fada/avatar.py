from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import aiohttp
from fada_client import AsyncClient, FadaError
from livekit import api, rtc
from livekit.agents import NOT_GIVEN, AgentSession, NotGivenOr, get_job_context, utils
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.voice.avatar import AvatarSession as BaseAvatarSession
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.agents.voice.events import AgentStateChangedEvent, UserStateChangedEvent

from .errors import FadaException
from .log import logger
from .runner import FadaAvatarRunner, LocalAudioOutput
from .video_generator import DEFAULT_SAMPLE_RATE, FaceState, FadaVideoGenerator

DEFAULT_API_URL = "http://127.0.0.1:8000"
RPC_STATE = "fada.state"
_AVATAR_IDENTITY = "fada-avatar-agent"
_AVATAR_NAME = "FADA avatar"
_LAUNCH_TIMEOUT_S = 60.0


class AvatarSession(BaseAvatarSession[Literal["error"]]):
    """An avatar that a FADA service draws, for one `AgentSession`.

    Without ``worker_url`` the avatar lives in the agent's process: pictures are decoded here and
    published by the agent's own participant. With it, a bridge (``fada livekit-bridge``) joins the
    room as the avatar.

    Emits ``error`` with a `FadaException` if the service's session breaks off. The agent then goes
    on without picture or voice; its speech counts as interrupted.
    """

    def __init__(
        self,
        *,
        avatar_id: NotGivenOr[str] = NOT_GIVEN,
        portrait: NotGivenOr[str | Path | bytes] = NOT_GIVEN,
        options: NotGivenOr[Mapping[str, Any]] = NOT_GIVEN,
        api_url: NotGivenOr[str] = NOT_GIVEN,
        api_key: NotGivenOr[str] = NOT_GIVEN,
        worker_url: NotGivenOr[str] = NOT_GIVEN,
        worker_key: NotGivenOr[str] = NOT_GIVEN,
        avatar_participant_identity: NotGivenOr[str] = NOT_GIVEN,
        avatar_participant_name: NotGivenOr[str] = NOT_GIVEN,
        sample_rate: int = DEFAULT_SAMPLE_RATE,
    ) -> None:
        """
        Args:
            avatar_id: A prepared portrait of the service; ``FADA_AVATAR_ID``.
            portrait: A picture, as a path or its contents, in place of ``avatar_id``.
            options: Options of an animation, as ``{"size": 512, "framing": "full"}``.
            api_url: The service; ``FADA_API_URL``, else ``http://127.0.0.1:8000``.
            api_key: Its key, if it asks for one; ``FADA_API_KEY``.
            worker_url: A bridge; ``FADA_LIVEKIT_BRIDGE_URL``. It knows the service, so ``api_url``
                and ``api_key`` are not used.
            worker_key: The bridge's key; ``FADA_LIVEKIT_BRIDGE_KEY``.
            avatar_participant_identity: With a bridge, the avatar's identity in the room.
            avatar_participant_name: With a bridge, its name there.
            sample_rate: Of the voice, a multiple of 25.

        Raises `FadaException` (``config``) unless there is one of ``avatar_id`` and ``portrait``.
        """
        super().__init__()
        self._portrait = _value(portrait)
        self._avatar_id = _value(avatar_id, None if self._portrait else "FADA_AVATAR_ID")
        if (self._portrait is None) == (self._avatar_id is None):
            raise FadaException(
                "expected either avatar_id (or FADA_AVATAR_ID) or portrait", code="config"
            )
        self._options = dict(_value(options) or {})
        self._api_url = _value(api_url, "FADA_API_URL") or DEFAULT_API_URL
        self._api_key = _value(api_key, "FADA_API_KEY")
        self._worker_url = _value(worker_url, "FADA_LIVEKIT_BRIDGE_URL")
        self._worker_key = _value(worker_key, "FADA_LIVEKIT_BRIDGE_KEY")
        if self._worker_url and not self._worker_key:
            raise FadaException(
                "a bridge needs worker_key or FADA_LIVEKIT_BRIDGE_KEY", code="config"
            )
        self._identity = _value(avatar_participant_identity) or _AVATAR_IDENTITY
        self._name = _value(avatar_participant_name) or _AVATAR_NAME
        self._sample_rate = sample_rate
        self._started = False
        self._client: AsyncClient | None = None
        self._generator: FadaVideoGenerator | None = None
        self._runner: FadaAvatarRunner | None = None
        self._face_state: FaceState = "idle"
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def avatar_identity(self) -> str:
        """With a bridge the avatar's own; else the agent's, once the room is connected."""
        if self._worker_url is None and self._room is not None and self._room.isconnected():
            return self._room.local_participant.identity
        return self._identity

    @property
    def provider(self) -> str:
        return "fada"

    async def start(
        self,
        agent_session: AgentSession[Any],
        room: rtc.Room,
        *,
        livekit_url: NotGivenOr[str] = NOT_GIVEN,
        livekit_api_key: NotGivenOr[str] = NOT_GIVEN,
        livekit_api_secret: NotGivenOr[str] = NOT_GIVEN,
    ) -> None:
        """To be called before ``agent_session.start()``. Raises `FadaException`.

        ``livekit_*`` are for a bridge, which joins with a token of theirs: by default
        ``LIVEKIT_URL``, ``LIVEKIT_API_KEY`` and ``LIVEKIT_API_SECRET``.
        """
        if self._started:
            raise RuntimeError("an AvatarSession starts once: create another one")
        self._started = True
        await super().start(agent_session, room)
        try:
            if self._worker_url is None:
                await self._start_here(agent_session, room)
            else:
                token = self._token(
                    room,
                    _needed(livekit_api_key, "LIVEKIT_API_KEY"),
                    _needed(livekit_api_secret, "LIVEKIT_API_SECRET"),
                )
                await self._launch(room, _needed(livekit_url, "LIVEKIT_URL"), token)
                agent_session.output.replace_audio_tail(
                    DataStreamAudioOutput(
                        room,
                        destination_identity=self._identity,
                        sample_rate=self._sample_rate,
                        wait_remote_track=rtc.TrackKind.KIND_VIDEO,
                        wait_playback_start=True,
                    )
                )
        except BaseException:
            await self.aclose()
            raise
        agent_session.on("agent_state_changed", self._on_state_changed)
        agent_session.on("user_state_changed", self._on_state_changed)

    async def aclose(self) -> None:
        session, room = self._agent_session, self._room
        if session is not None:
            session.off("agent_state_changed", self._on_state_changed)
            session.off("user_state_changed", self._on_state_changed)
        await utils.aio.cancel_and_wait(*self._tasks)
        if self._runner is not None:
            await self._runner.aclose()
        if self._generator is not None:
            await self._generator.aclose()
        if self._client is not None:
            await self._client.close()
        self._runner = self._generator = self._client = None
        if self._worker_url is None and room is not None:
            # The base removes the avatar's participant from the room; here that is the agent.
            room.off("connection_state_changed", self._on_connection_state_changed)
            self._room = None
        await super().aclose()

    async def _start_here(self, agent_session: AgentSession[Any], room: rtc.Room) -> None:
        self._client = AsyncClient(self._api_url, self._api_key)
        if self._avatar_id is None:
            assert self._portrait is not None
            try:
                self._avatar_id = (await self._client.create_avatar(self._portrait)).avatar_id
            except FadaError as error:
                raise FadaException.of(error) from error
        self._generator = FadaVideoGenerator(
            self._client, self._avatar_id, sample_rate=self._sample_rate, options=self._options
        )
        options = await self._generator.start()
        output = LocalAudioOutput(sample_rate=self._sample_rate)
        self._runner = FadaAvatarRunner(
            room, audio_recv=output, video_gen=self._generator, options=options
        )
        await self._runner.start()
        self._keep(self._watch(self._runner))
        agent_session.output.replace_audio_tail(output)

    async def _watch(self, runner: FadaAvatarRunner) -> None:
        try:
            await runner.wait_for_complete()
        except FadaException as error:
            self.emit("error", error)

    def _token(self, room: rtc.Room, key: str, secret: str) -> str:
        """For the avatar: it may join this room, and speaks for this agent."""
        job = get_job_context(required=False)
        if job is not None:
            agent_identity = job.local_participant_identity
        elif room.isconnected():
            agent_identity = room.local_participant.identity
        else:
            raise FadaException("expected a connected room or an agent's job", code="config")
        return (
            api.AccessToken(key, secret)
            .with_kind("agent")
            .with_identity(self._identity)
            .with_name(self._name)
            .with_grants(api.VideoGrants(room_join=True, room=room.name))
            .with_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: agent_identity})
            .to_jwt()
        )

    async def _launch(self, room: rtc.Room, livekit_url: str, token: str) -> None:
        request = {
            "livekit_url": livekit_url,
            "livekit_token": token,
            "room_name": room.name,
            "options": self._options,
            "sample_rate": self._sample_rate,
        }
        if self._avatar_id is not None:
            request["avatar_id"] = self._avatar_id
        else:
            assert self._portrait is not None
            request["portrait"] = base64.b64encode(_contents(self._portrait)).decode()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_LAUNCH_TIMEOUT_S)) as http,
                http.post(
                    f"{str(self._worker_url).rstrip('/')}/launch",
                    json=request,
                    headers={"Authorization": f"Bearer {self._worker_key}"},
                ) as answer,
            ):
                if answer.status != 200:
                    raise FadaException(
                        f"{answer.status} {(await answer.text())[:300]}", code="bridge"
                    )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FadaException(f"{type(error).__name__}: {error}", code="bridge") from error

    def _on_state_changed(self, _: AgentStateChangedEvent | UserStateChangedEvent) -> None:
        session, room = self._agent_session, self._room
        if session is None:
            return
        state = face_state(session.agent_state, session.user_state)
        if state == self._face_state:
            return
        self._face_state = state
        if self._generator is not None:
            self._generator.set_state(state)
        elif room is not None:
            self._keep(self._tell(room, state))

    async def _tell(self, room: rtc.Room, state: FaceState) -> None:
        try:
            await room.local_participant.perform_rpc(
                destination_identity=self._identity, method=RPC_STATE, payload=state
            )
        except rtc.RpcError as error:
            logger.warning("the avatar did not take the state %r: %s", state, error)

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def face_state(agent: str, user: str) -> FaceState:
    """How the face acts while it does not speak: attentive to a user who speaks, above all."""
    if user == "speaking":
        return "listening"
    return "thinking" if agent == "thinking" else "idle"


def _value(given: Any, variable: str | None = None) -> Any:
    """``given``, else the environment's, else ``None``."""
    if utils.is_given(given):
        return given
    return (os.environ.get(variable) or None) if variable else None


def _needed(given: NotGivenOr[str], variable: str) -> str:
    value = _value(given, variable)
    if not value:
        raise FadaException(f"{variable} is needed, as an argument or a variable", code="config")
    return str(value)


def _contents(portrait: str | Path | bytes) -> bytes:
    return portrait if isinstance(portrait, bytes) else Path(portrait).read_bytes()
