"""`GET /stream`: a WebSocket on which speech comes in while the talking video goes out.

A client that sends sound faster than it is spoken is told when `MAX_WAITING_S` of it wait. To
leave the socket unread instead would hold back an interrupt behind the sound that it is to stop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from server import logs, metrics, traces
from server.api.access import subprotocol
from server.api.animate import check_avatar
from server.api.connections import LIMIT
from server.api.context import RequestContext, choose_model, context
from server.api.protocol import LiveStart, parse_options
from server.api.uploads import check_portrait
from server.api.video import ClientGone, first_event, first_fragment_timed
from server.broker import messages
from server.broker.redis import BROKER_LOST
from server.errors import ServiceError
from server.tasks import cancel_and_wait

router = APIRouter()
log = logging.getLogger("fada.api")

MAX_WAITING_S = 60
MAX_MESSAGE_BYTES = 6 << 20  # a minute at 48 kHz
MAX_TEXT_BYTES = 16 << 10  # after `start`
MAX_PORTRAIT_BYTES = 1 << 20  # larger ones go through /avatars
_MARGIN_BYTES = 64 << 10
_START_S = 10.0
_UPDATES = ("steps", "audio_cfg", "reference_cfg")
_BAD_CLIENT = 1008
_SAME_MOMENT_S = 0.02  # arrivals are told apart no finer, so that few are kept
_CLOSE_CODES = {"too_large": 1009, "internal_error": 1011, "busy": 1013, "no_worker": 1013}


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """One live session, from `start` to a close with a reason."""
    await websocket.accept(subprotocol(websocket))
    try:
        error = await _errors_of(websocket)
        if error is None:
            await websocket.close(1000)
            return
        metrics.error(error.code)
        await _send(websocket, {"type": "error", "code": error.code, "detail": error.detail})
        await websocket.close(_CLOSE_CODES.get(error.code, _BAD_CLIENT), error.kind.title)
    except (ClientGone, WebSocketDisconnect, OSError):
        log.info("a live session's client hung up")


async def _errors_of(websocket: WebSocket) -> ServiceError | None:
    """Hold the session; how it ended, in the client's terms."""
    here = context(websocket)
    try:
        async with here.access.session(await here.access.admit(websocket)):
            with metrics.stream_open():
                await _session(websocket, context(websocket))
    except ServiceError as error:
        return error
    except BROKER_LOST as error:
        log.error("the broker does not answer: %s", error)
        return ServiceError("no_worker", "the service's queue does not answer")
    except (ClientGone, WebSocketDisconnect, OSError):
        raise
    except Exception:
        log.exception("a live session failed")
        return ServiceError("internal_error", "the session could not go on")
    return None


async def _session(websocket: WebSocket, here: RequestContext) -> None:
    try:
        async with asyncio.timeout(_START_S):
            start = await _start(websocket)
    except TimeoutError as late:
        raise ServiceError("timeout", f"no 'start' came within {_START_S:g} s") from late
    # A little more gets an answer that says what is allowed; far more, the bare close code.
    websocket.scope.get(LIMIT, lambda most: None)(MAX_MESSAGE_BYTES + _MARGIN_BYTES)
    began_s = time.monotonic()
    request, parts = await _request(here, start)
    job_id = await here.client.submit(request, parts)
    logs.bind(job=job_id)
    traces.note(job=job_id)
    events = first_fragment_timed(here.client.follow(job_id, consume=True), "live", began_s)
    live = _Live(websocket, here, job_id, start.sample_rate)
    listening, answering = (
        asyncio.create_task(way) for way in (live.listen(), live.answer(events))
    )
    error: BaseException | None = None
    try:
        # The client may have nothing more to say while there is more to answer.
        while error is None and not answering.done():
            going = {task for task in (listening, answering) if not task.done()}
            ended, _ = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            error = next((task.exception() for task in ended if task.exception()), None)
    finally:
        try:
            await cancel_and_wait((listening, answering))
        finally:
            await here.client.abandon(job_id, live=True)
    if error is not None:
        raise error


class _Live:
    """A session that has begun: both directions, and how much sound waits between them."""

    def __init__(
        self, websocket: WebSocket, here: RequestContext, job_id: str, sample_rate: int
    ) -> None:
        self._websocket, self._client, self._job_id = websocket, here.client, job_id
        self._max_waiting = MAX_WAITING_S * sample_rate * 2
        self._microphone = _Microphone(sample_rate)
        # Bytes of sound: all, those before the last interrupt, and those the worker has taken.
        self._sent = self._dropped = self._heard = 0
        self._told = 0
        self._ended = False

    async def listen(self) -> None:
        """What the client says, to the worker, until the session ends; raises `ClientGone`."""
        while True:
            message = await _receive(self._websocket, MAX_TEXT_BYTES)
            command = self._sound(message) if isinstance(message, bytes) else self._command(message)
            self._told += 1
            if not await self._client.send_command(self._job_id, self._told, command):
                return  # the session's ending is on its way to the client

    def _sound(self, pcm: bytes) -> messages.AudioChunk:
        if self._ended:
            raise ServiceError("bad_request", "sound came after 'end'")
        self._sent += len(pcm)
        self._microphone.came(self._sent, time.monotonic())
        # What an interrupt drops still takes room until the worker has seen it.
        waiting = self._sent - max(self._heard, self._dropped)
        if waiting > self._max_waiting or self._sent - self._heard > 2 * self._max_waiting:
            seconds = waiting * MAX_WAITING_S / self._max_waiting
            raise ServiceError(
                "too_large",
                f"{seconds:.1f} s of sound wait to be spoken; at most {MAX_WAITING_S} s may",
            )
        return messages.AudioChunk(data=pcm)

    def _command(self, fields: dict[str, Any]) -> messages.LiveCommand:
        kind = fields.pop("type", None)
        if kind == "update":
            return _update(fields)
        if kind not in ("interrupt", "end") or fields:
            raise ServiceError(
                "bad_request",
                f"a message of type {str(kind)[:100]!r} with {_names(fields)} is none of "
                "interrupt, end, update with options",
            )
        if kind == "interrupt":
            self._dropped = self._sent
            return messages.Interrupt()
        self._ended = True
        return messages.End()

    async def answer(self, events: AsyncIterator[messages.AnyEvent]) -> None:
        """What the worker makes, to the client, until the video ends well; else it raises."""
        started = await first_event(events)
        if not isinstance(started, messages.Started):
            raise TypeError(f"a live session starts with a video, got {started.type}")
        await _send(
            self._websocket,
            {
                "type": "ready",
                "session_id": self._job_id,
                "seed": started.seed,
                "mime": f'video/mp4; codecs="{started.codecs}"',
                "fps": started.fps,
                "width": started.width,
                "height": started.height,
            },
        )
        await self._websocket.send_bytes(started.data)
        async for event in events:
            if isinstance(event, messages.Done):
                await _send(
                    self._websocket,
                    {"type": "done", "frames": event.frames, "duration_s": event.duration_s},
                )
                return
            await self._pass_on(event)
        raise ServiceError("internal_error", "the session has expired")

    async def _pass_on(self, event: messages.AnyEvent) -> None:
        if isinstance(event, messages.Failed):
            raise ServiceError(event.code, event.detail)
        if isinstance(event, messages.Interrupted):
            self._heard = max(self._heard, event.consumed_bytes)
            self._microphone.at(event.consumed_bytes)
            await _send(self._websocket, {"type": "interrupted", "at_s": event.at_s})
        elif isinstance(event, messages.Fragment):
            self._heard = max(self._heard, event.consumed_bytes)
            facts = {
                "type": "fragment",
                "index": event.index,
                "start_s": event.start_s,
                "duration_s": event.duration_s,
                "kind": "speech" if event.speech else "idle",
            }
            await _send(self._websocket, facts)
            await self._websocket.send_bytes(event.data)
            self._measure(event)
        else:
            raise ServiceError("internal_error", f"the session was ended: {event.type}")

    def _measure(self, fragment: messages.Fragment) -> None:
        if not fragment.speech:  # whatever was said before has been spoken
            self._microphone.at(fragment.consumed_bytes)
            return
        came_s = self._microphone.spoken(fragment.duration_s)
        if came_s is not None:
            metrics.mic_to_fragment(time.monotonic() - came_s)


class _Microphone:
    """When the sound came in that a fragment speaks. Positions are bytes since the start."""

    def __init__(self, sample_rate: int) -> None:
        self._byte_rate = 2 * sample_rate
        self._position = 0.0
        self._arrivals: deque[tuple[int, float]] = deque()  # up to where, when its first byte came

    def came(self, end: int, now_s: float) -> None:
        """Everything up to ``end`` has come."""
        if self._arrivals and now_s - self._arrivals[-1][1] < _SAME_MOMENT_S:
            self._arrivals[-1] = (end, self._arrivals[-1][1])
        else:
            self._arrivals.append((end, now_s))

    def at(self, position: int) -> None:
        """Speech goes on from here."""
        self._position = position

    def spoken(self, seconds: float) -> float | None:
        """When the first byte of the next ``seconds`` came; ``None`` for padding after the end."""
        while self._arrivals and self._arrivals[0][0] <= self._position:
            self._arrivals.popleft()
        self._position += seconds * self._byte_rate
        return self._arrivals[0][1] if self._arrivals else None


async def _start(websocket: WebSocket) -> LiveStart:
    message = await _receive(websocket)
    if isinstance(message, bytes) or message.pop("type", None) != "start":
        raise ServiceError("bad_request", "the first message must be text of type 'start'")
    options = {k: v for k, v in message.items() if k not in LiveStart.model_fields}
    own = {k: v for k, v in message.items() if k in LiveStart.model_fields and k != "options"}
    if "options" in message:
        raise ServiceError("invalid_option", "options are given as keys of 'start' themselves")
    try:
        return LiveStart.model_validate({**own, "options": parse_options(options)})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ServiceError(
            "invalid_option", f"{name} is {str(own.get(name))[:100]!r}: {first['msg']}"
        ) from error


async def _request(
    here: RequestContext, start: LiveStart
) -> tuple[messages.LiveRequest, dict[str, bytes]]:
    if (start.portrait is None) == (start.avatar_id is None):
        raise ServiceError("bad_request", "give either 'portrait' or 'avatar_id'")
    parts = {}
    if start.avatar_id is not None:
        await check_avatar(here.client, start.avatar_id)
    if start.portrait is not None:
        try:
            parts["portrait"] = base64.b64decode(start.portrait, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ServiceError("bad_request", f"'portrait' is no base64: {error}") from error
        check_portrait(parts["portrait"], min(MAX_PORTRAIT_BYTES, here.settings.max_portrait_bytes))
    model = await choose_model(here.client, start.options.model)
    seed = start.options.seed
    request = messages.LiveRequest(
        options=start.options,
        model=model.name,
        seed=secrets.randbelow(2**63) if seed is None else seed,
        sample_rate=start.sample_rate,
        idle=start.idle,
        avatar_id=start.avatar_id,
    )
    return request, parts


def _update(fields: dict[str, Any]) -> messages.Update:
    for name in fields:
        if name not in _UPDATES:
            raise ServiceError(
                "invalid_option",
                f"{name[:100]!r} cannot be updated; allowed are {', '.join(_UPDATES)}",
            )
    options = parse_options(fields)
    return messages.Update(
        steps=options.steps, audio_cfg=options.audio_cfg, reference_cfg=options.reference_cfg
    )


async def _receive(websocket: WebSocket, most: int | None = None) -> bytes | dict[str, Any]:
    """The next message: sound, or the object that a text of ``most`` bytes holds.

    Raises `ClientGone`.
    """
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise ClientGone
    content = message["text"] if message.get("bytes") is None else message["bytes"]
    limit = most if most is not None and isinstance(content, str) else MAX_MESSAGE_BYTES
    if len(content) > limit:
        raise ServiceError(
            "too_large", f"a message has {len(content)} bytes; at most {limit} are allowed"
        )
    if isinstance(content, bytes):
        return content
    try:
        fields = json.loads(content)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except (ValueError, RecursionError) as error:
        raise ServiceError("bad_request", f"a text is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ServiceError(
            "bad_request", f"a text must hold a JSON object, this is a {type(fields).__name__}"
        )
    return fields


async def _send(websocket: WebSocket, fields: dict[str, Any]) -> None:
    await websocket.send_text(json.dumps(fields))


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(fields)[:100] or "no fields"
