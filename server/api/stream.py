"""`GET /stream`: a WebSocket that takes speech and sends the talking video while it is made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterator
from typing import Any, cast

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from server import metrics
from server.api.access import subprotocol
from server.api.connections import BROKEN_OFF, SET_MESSAGE_LIMIT
from server.api.dependencies import RequestContext, admit
from server.api.live import converse, ending, live_job, parse_message
from server.api.problems import broker_lost
from server.api.protocol import LiveStart, parse_options
from server.api.resume import Resume, find_session, parse_resume
from server.api.video import ClientGone, Detached
from server.broker.redis import BROKER_LOST
from server.errors import ServiceError

router = APIRouter()
log = logging.getLogger("fada.api")

MAX_MESSAGE_BYTES = 6 << 20  # a minute at 48 kHz
MAX_TEXT_BYTES = 16 << 10  # after `start`
_MARGIN_BYTES = 64 << 10
_START_TIMEOUT_S = 10.0
_POLICY_VIOLATION = 1008
_RESTART = 1012  # uvicorn's close when this process ends
_CUT_OFF = (BROKEN_OFF, 1011, 1014)  # closes that the client did not want; 1014 is a proxy's
_CLOSE_CODES = {"too_large": 1009, "internal_error": 1011, "busy": 1013, "no_worker": 1013}


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """One live session, from `start` or `resume` to a close with a reason."""
    await websocket.accept(subprotocol(websocket))
    try:
        error = await _run_session(websocket)
        if error is None:
            await websocket.close(1000)
            return
        metrics.error(error.code)
        problem = {"type": "error", "code": error.code, "detail": error.detail}
        await websocket.send_text(json.dumps(problem))
        await websocket.close(_CLOSE_CODES.get(error.code, _POLICY_VIOLATION), error.kind.title)
    except (ClientGone, WebSocketDisconnect, OSError):
        log.info("a live session's client disconnected")


async def _run_session(websocket: WebSocket) -> ServiceError | None:
    """Run the session; return the error that ended it, for the client."""
    try:
        context = await admit(websocket)
        with metrics.stream_open():
            await _session(websocket, context)
    except ServiceError as error:
        return error
    except BROKER_LOST as error:
        log.error("the broker does not reply: %s", error)
        return broker_lost()
    except Detached as detached:
        if detached.error is None:
            raise
        return detached.error
    except (ClientGone, WebSocketDisconnect, OSError):
        raise
    except Exception:
        log.exception("a live session failed")
        return ServiceError("internal_error", "the session failed")
    return None


async def _session(websocket: WebSocket, context: RequestContext) -> None:
    channel = _WebSocketChannel(websocket, moves=context.settings.redis_url is not None)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            first = await _first(channel)
    except TimeoutError as timeout:
        raise ServiceError("timeout", f"no 'start' within {_START_TIMEOUT_S:g} s") from timeout
    # A message slightly too large gets an error that states the limit; far too large, a close code.
    set_limit = websocket.scope.get(SET_MESSAGE_LIMIT, lambda max_bytes: None)
    set_limit(MAX_MESSAGE_BYTES + _MARGIN_BYTES)
    channel.max_text_bytes = MAX_TEXT_BYTES
    if isinstance(first, Resume):
        await _resume(channel, context, first)
    else:
        await _begin(channel, context, first)


async def _begin(channel: _WebSocketChannel, context: RequestContext, start: LiveStart) -> None:
    start_s = time.monotonic()
    token, place = secrets.token_urlsafe(16), secrets.token_hex(8)
    async with (
        context.access.session(context.client, place),
        live_job(context, start, token=token, place=place) as job_id,
    ):
        await converse(
            channel,
            context.producer,
            job_id,
            sample_rate=start.sample_rate,
            start_s=start_s,
            token=token,
        )


async def _resume(channel: _WebSocketChannel, context: RequestContext, resume: Resume) -> None:
    start_s = time.monotonic()
    request = await find_session(context, resume)
    job_id = resume.session_id
    async with (
        context.access.session(context.client, request.place),
        ending(context.producer, job_id, resumable=True),
    ):
        await converse(
            channel,
            context.producer,
            job_id,
            sample_rate=request.sample_rate,
            start_s=start_s,
            token=request.token,
            resume=resume,
        )


class _WebSocketChannel:
    def __init__(self, websocket: WebSocket, *, moves: bool) -> None:
        """``moves``: when this process ends, its sessions may go on at another."""
        self._websocket, self._moves = websocket, moves
        self.max_text_bytes = MAX_MESSAGE_BYTES

    async def receive(self) -> bytes | dict[str, Any]:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            code = message["code"]
            raise Detached if code in _CUT_OFF or (self._moves and code == _RESTART) else ClientGone
        content = message["text"] if message.get("bytes") is None else message["bytes"]
        if isinstance(content, str):
            return parse_message(content, self.max_text_bytes)
        if len(content) > MAX_MESSAGE_BYTES:
            raise ServiceError(
                "too_large",
                f"the message has {len(content)} bytes, expected at most {MAX_MESSAGE_BYTES}",
            )
        return cast(bytes, content)

    async def send(self, fields: dict[str, Any]) -> None:
        with _detaching():
            await self._websocket.send_text(json.dumps(fields))

    async def send_media(self, data: bytes, pcm: bytes = b"") -> None:
        with _detaching():
            await self._websocket.send_bytes(data)


@contextlib.contextmanager
def _detaching() -> Iterator[None]:
    try:
        yield
    except (WebSocketDisconnect, OSError) as error:
        raise Detached from error


async def _first(channel: _WebSocketChannel) -> LiveStart | Resume:
    message = await channel.receive()
    kind = "audio" if isinstance(message, bytes) else message.pop("type", None)
    if not isinstance(message, bytes) and kind == "resume":
        return parse_resume(message)
    if isinstance(message, bytes) or kind != "start":
        raise ServiceError(
            "bad_request", f"first message = {str(kind)[:100]!r}, expected a text of type 'start'"
        )
    options = {k: v for k, v in message.items() if k not in LiveStart.model_fields}
    own = {k: v for k, v in message.items() if k in LiveStart.model_fields and k != "options"}
    if "options" in message:
        raise ServiceError(
            "invalid_option",
            "'options' is not a key of 'start'; pass each option as a key of its own",
        )
    try:
        return LiveStart.model_validate({**own, "options": parse_options(options)})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ServiceError(
            "invalid_option", f"{name} = {str(own.get(name))[:100]!r}: {first['msg']}"
        ) from error
