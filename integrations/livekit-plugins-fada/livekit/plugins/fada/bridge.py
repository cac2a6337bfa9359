"""A service that joins LiveKit rooms as avatars, for agents elsewhere.

``POST /launch`` joins a room, ``GET /ready`` says whether avatars can be launched. Both want the
bridge's own key.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from fada_client import AsyncClient, FadaError
from livekit import rtc
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.voice.avatar import DataStreamAudioReceiver
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .avatar import RPC_STATE
from .errors import FadaException
from .runner import FadaAvatarRunner
from .video_generator import DEFAULT_SAMPLE_RATE, FadaVideoGenerator

logger = logging.getLogger("livekit.plugins.fada.bridge")

Join = Callable[[str, str], Awaitable[rtc.Room]]

_MAX_BODY_BYTES = 16 << 20
_JOIN_TIMEOUT_S = 20.0
# HTTP statuses of the service's codes; what is not here is the service's failure: 502.
_STATUSES = {
    "bad_request": 400,
    "not_found": 404,
    "too_large": 413,
    "unsupported_media": 415,
    "no_face": 422,
    "occluded": 422,
    "invalid_option": 422,
    "busy": 429,
    "no_worker": 503,
}


@dataclass(frozen=True)
class BridgeSettings:
    """``hosts``: LiveKit servers that may be joined, as ``host`` or ``host:port``."""

    key: str = field(repr=False)
    hosts: frozenset[str]
    api_url: str
    api_key: str | None = field(default=None, repr=False)


class LaunchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    livekit_url: str
    livekit_token: str
    room_name: str
    avatar_id: str | None = None
    portrait: str | None = None  # base64
    options: dict[str, Any] = {}
    sample_rate: int = DEFAULT_SAMPLE_RATE

    @model_validator(mode="after")
    def _one_face(self) -> LaunchRequest:
        if (self.avatar_id is None) == (self.portrait is None):
            raise ValueError("expected either avatar_id or portrait")
        return self


@dataclass(frozen=True)
class TokenClaims:
    """Of a LiveKit token. It is read, not checked: the server that it is for does that."""

    identity: str
    agent_identity: str
    room: str

    @classmethod
    def of(cls, token: str) -> TokenClaims:
        """Raises ``ValueError`` if it is no token, or lacks what an avatar's has."""
        try:
            payload = token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            attributes = claims["attributes"]
            return cls(
                claims["sub"], attributes[ATTRIBUTE_PUBLISH_ON_BEHALF], claims["video"]["room"]
            )
        except (IndexError, KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ValueError(
                f"livekit_token: expected sub, video.room and the attribute "
                f"{ATTRIBUTE_PUBLISH_ON_BEHALF}"
            ) from error


async def join_room(url: str, token: str) -> rtc.Room:
    """An avatar sends: it needs no one's tracks."""
    room = rtc.Room()
    await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
    return room


class Bridge:
    """Its avatars live until the agent leaves, the room closes or the service's session ends."""

    def __init__(self, settings: BridgeSettings, join: Join = join_room) -> None:
        self._settings, self._join = settings, join
        self._client = AsyncClient(settings.api_url, settings.api_key)
        self._avatars: dict[str, asyncio.Task[None]] = {}  # by the agent they speak for

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=_MAX_BODY_BYTES)
        app.add_routes([web.post("/launch", self._launch), web.get("/ready", self._ready)])
        app.on_shutdown.append(self._close)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(sent, self._settings.key.encode()):
            return _problem(401, "unauthorized", "expected the bridge's key as a bearer token")
        response: web.StreamResponse = await handler(request)
        return response

    async def _ready(self, _: web.Request) -> web.Response:
        try:
            models = await self._client.models()
        except FadaError as error:
            return _problem(503, error.code, error.detail)
        if not models:
            return _problem(503, "no_worker", "the service has no worker")
        return web.json_response({"status": "ready", "avatars": len(self._avatars)})

    async def _launch(self, http_request: web.Request) -> web.Response:
        try:
            request = LaunchRequest.model_validate_json(await http_request.read())
            portrait = request.portrait and base64.b64decode(request.portrait, validate=True)
            claims = TokenClaims.of(request.livekit_token)
        except ValidationError as error:
            first = error.errors()[0]
            return _problem(
                400, "bad_request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            )
        except ValueError as error:
            return _problem(400, "bad_request", str(error))
        if not is_allowed(request.livekit_url, self._settings.hosts):
            return _problem(403, "forbidden", "livekit_url is no server of FADA_LIVEKIT_HOSTS")
        if claims.room != request.room_name:
            return _problem(400, "bad_request", "livekit_token is for another room")
        if claims.agent_identity in self._avatars:
            # LiveKit's receivers of one process share their handlers, by the agent's identity.
            return _problem(409, "conflict", f"{claims.agent_identity!r} has an avatar already")
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(request, portrait or None, claims, started))
        self._avatars[claims.agent_identity] = task
        task.add_done_callback(lambda _: self._avatars.pop(claims.agent_identity, None))
        try:
            session_id = await started
        except FadaException as error:
            return _problem(_STATUSES.get(error.code, 502), error.code, error.detail)
        return web.json_response({"session_id": session_id, "identity": claims.identity})

    async def _run(
        self,
        request: LaunchRequest,
        portrait: bytes | None,
        claims: TokenClaims,
        started: asyncio.Future[str],
    ) -> None:
        """One avatar, from launch to end."""
        async with AsyncExitStack() as stack:
            try:
                runner, gone = await self._start(request, portrait, claims, stack)
            except FadaException as error:
                started.set_exception(error)
                return
            except asyncio.CancelledError:
                started.set_exception(FadaException("the bridge stops", code="no_worker"))
                raise
            except Exception:  # a bug of ours: its caller must not wait for ever
                started.set_exception(FadaException("the bridge failed", code="internal_error"))
                raise
            started.set_result(runner.session_id)
            logger.info("an avatar joined %s", request.room_name)
            playing = asyncio.create_task(runner.wait_for_complete())
            leaving = asyncio.create_task(gone.wait())
            try:
                await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
                if playing.done() and (failed := playing.exception()) is not None:
                    logger.error("the avatar in %s stopped: %s", request.room_name, failed)
            finally:
                playing.cancel()
                leaving.cancel()
        logger.info("an avatar left %s", request.room_name)

    async def _start(
        self,
        request: LaunchRequest,
        portrait: bytes | None,
        claims: TokenClaims,
        stack: AsyncExitStack,
    ) -> tuple[FadaAvatarRunner, asyncio.Event]:
        avatar_id = request.avatar_id
        try:
            if portrait is not None:
                avatar_id = (await self._client.create_avatar(portrait)).avatar_id
        except FadaError as error:
            raise FadaException.of(error) from error
        try:
            generator = FadaVideoGenerator(
                self._client, avatar_id, sample_rate=request.sample_rate, options=request.options
            )
            stack.push_async_callback(generator.aclose)
            options = await generator.start()
        except (ValueError, TypeError) as error:
            raise FadaException(str(error), code="invalid_option") from error
        gone = asyncio.Event()
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                room = await self._join(request.livekit_url, request.livekit_token)
                stack.push_async_callback(room.disconnect)
                room.on("disconnected", lambda *_: gone.set())

                def left(participant: rtc.RemoteParticipant) -> None:
                    if participant.identity == claims.agent_identity:
                        gone.set()

                room.on("participant_disconnected", left)
                receiver = DataStreamAudioReceiver(room, sender_identity=claims.agent_identity)
                runner = FadaAvatarRunner(
                    room, audio_recv=receiver, video_gen=generator, options=options
                )
                stack.push_async_callback(runner.aclose)
                _take_states(room, claims.agent_identity, generator)
                await runner.start()
        except (rtc.ConnectError, TimeoutError, RuntimeError) as error:
            detail = str(error) or f"neither room nor agent within {_JOIN_TIMEOUT_S:g} s"
            raise FadaException(detail, code="livekit") from error
        return runner, gone

    async def _close(self, _: web.Application) -> None:
        tasks = list(self._avatars.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()


def is_allowed(url: str, hosts: frozenset[str]) -> bool:
    """Whether ``url`` is of a LiveKit server whose ``host`` or ``host:port`` is among ``hosts``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme not in ("ws", "wss", "http", "https") or parts.username or parts.password:
        return False
    return host in hosts or (port is not None and f"{host}:{port}" in hosts)


def _take_states(room: rtc.Room, agent_identity: str, generator: FadaVideoGenerator) -> None:
    def handle(call: rtc.RpcInvocationData) -> str:
        if call.caller_identity != agent_identity:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.APPLICATION_ERROR, "not the agent")
        if call.payload not in ("listening", "thinking", "idle"):
            raise rtc.RpcError(
                rtc.RpcError.ErrorCode.APPLICATION_ERROR, "expected listening, thinking or idle"
            )
        generator.set_state(call.payload)  # type: ignore[arg-type]
        return "ok"

    room.local_participant.register_rpc_method(RPC_STATE, handle)


def _problem(status: int, code: str, detail: str) -> web.Response:
    document = {"type": "about:blank", "status": status, "code": code, "detail": detail}
    return web.json_response(document, status=status, content_type="application/problem+json")
