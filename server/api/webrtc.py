"""`POST /webrtc`: a live session over WebRTC. As in WHIP, an SDP offer goes in, an answer out.

It is a session of `/stream`: the client's microphone is its audio, tracks carry the video, and a
data channel the messages. It lasts until the client leaves, says `end` or deletes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server import metrics
from server.api.dependencies import ADMITTED, Context, JobId, RequestContext
from server.api.live import converse, live_job, parse_message
from server.api.problems import PROBLEMS, broker_lost
from server.api.protocol import CONTENT_SOURCE, AnimationOptions, LiveStart, location, parse_options
from server.api.video import ClientGone
from server.broker import attachment
from server.broker.redis import BROKER_LOST
from server.errors import ServiceError
from server.tasks import cancel_and_wait
from server.webrtc import wire
from server.webrtc.offer import Offer
from server.webrtc.peers import PeerLink, Peers, check_installed

router = APIRouter(tags=["webrtc"], responses=PROBLEMS, dependencies=ADMITTED)
log = logging.getLogger("fada.api")

MAX_OFFER_BYTES = 64 << 10
MAX_COMMAND_BYTES = 16 << 10
SDP = "application/sdp"


class LiveCalls:
    """The WebRTC sessions of this process; they outlive the requests that began them."""

    def __init__(self, *, loopback: bool) -> None:
        self.loopback = loopback
        self._peers = Peers()
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, context: RequestContext, start: LiveStart, offer: Offer) -> _Begun:
        """Run a session from now on; return when its offer is answered.

        Raises `ServiceError` for a session or an offer that is refused.
        """
        begun: asyncio.Future[_Begun] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(context, start, offer, begun=begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await begun

    async def close(self) -> None:
        """End all sessions."""
        await cancel_and_wait(list(self._tasks))
        self._peers.close()

    async def _run(
        self,
        context: RequestContext,
        start: LiveStart,
        offer: Offer,
        *,
        begun: asyncio.Future[_Begun],
    ) -> None:
        try:
            await self._session(context, start, offer, begun=begun)
        except ClientGone:
            log.info("a WebRTC session's client has gone")
        except ServiceError as error:
            _refuse(begun, error)
        except BROKER_LOST as error:
            log.error("the broker does not reply: %s", error)
            _refuse(begun, broker_lost())
        except Exception:
            log.exception("a WebRTC session failed")
            _refuse(begun, ServiceError("internal_error", "the session failed"))
        finally:
            begun.cancel()  # unless it has a result

    async def _session(
        self,
        context: RequestContext,
        start: LiveStart,
        offer: Offer,
        *,
        begun: asyncio.Future[_Begun],
    ) -> None:
        start_s = time.monotonic()
        async with AsyncExitStack() as stack:
            await context.producer.wait_for_worker()  # before there is a process to wait with
            peer = await stack.enter_async_context(
                self._peers.reading(offer, client=context.client)
            )
            await stack.enter_async_context(context.access.session(context.client))
            job = live_job(context, start, pcm=peer.sends_sound)
            job_id = await stack.enter_async_context(job)
            await attachment.expect_connection(context.producer.connection, job_id)
            begun.set_result(_Begun(job_id, await peer.answer()))
            with metrics.stream_open():
                channel = _PeerChannel(peer)
                try:
                    await converse(
                        channel, context.producer, job_id,
                        sample_rate=start.sample_rate, start_s=start_s,
                    )  # fmt: skip
                except ServiceError as error:
                    metrics.error(error.code)
                    await channel.send(
                        {"type": "error", "code": error.code, "detail": error.detail}
                    )


class _Begun:
    def __init__(self, job_id: str, answer: str) -> None:
        self.job_id, self.answer = job_id, answer


def _refuse(begun: asyncio.Future[_Begun], error: ServiceError) -> None:
    if not begun.done():
        begun.set_exception(error)


class _PeerChannel:
    """A peer as a session's channel."""

    def __init__(self, peer: PeerLink) -> None:
        self._peer = peer
        self._ended = False

    async def receive(self) -> bytes | dict[str, Any]:
        try:
            while True:
                kind, body = await self._peer.receive()
                if kind == wire.COMMAND:
                    fields = parse_message(body, MAX_COMMAND_BYTES)
                    self._ended |= fields.get("type") == "end"
                    return fields
                if not self._ended:  # a microphone goes on after `end`
                    return body
        except ConnectionError as error:
            raise ClientGone from error

    async def send(self, fields: dict[str, Any]) -> None:
        try:
            await self._peer.send(fields)
        except ConnectionError as error:
            raise ClientGone from error

    async def send_media(self, data: bytes, pcm: bytes = b"") -> None:
        try:
            await self._peer.send_media(data, pcm)
        except ConnectionError as error:
            raise ClientGone from error


@asynccontextmanager
async def live_calls(*, loopback: bool) -> AsyncIterator[LiveCalls]:
    """The WebRTC sessions of an API process that serves only this machine, or others too."""
    calls = LiveCalls(loopback=loopback)
    try:
        yield calls
    finally:
        await calls.close()


def _calls(request: Request) -> LiveCalls:
    return cast(LiveCalls, request.app.state.live_calls)


_OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": "avatar_id",
            "in": "query",
            "required": True,
            "schema": {"type": "string"},
            "description": "from `POST /avatars`",
        },
        {
            "name": "audio",
            "in": "query",
            "schema": {"type": "boolean", "default": True},
            "description": "whether the avatar's sound is sent back",
        },
        *(
            {"name": name, "in": "query", "schema": schema}
            for name, schema in AnimationOptions.model_json_schema()["properties"].items()
            if name != "output"
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {SDP: {"schema": {"type": "string"}}},
        "description": "the offer, with all of its candidates",
    },
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@router.post(
    "/webrtc",
    status_code=201,
    response_class=Response,
    openapi_extra=_OPENAPI,
    responses={
        201: {
            "description": "the answer; `DELETE` its `Location` to end the session",
            "content": {SDP: {"schema": {"type": "string"}}},
            "headers": {"Location": location("the session")},
        }
    },
)
async def begin(
    context: Context, request: Request, calls: Annotated[LiveCalls, Depends(_calls)]
) -> Response:
    """Begin a live session over WebRTC."""
    check_installed()
    fields = dict(request.query_params)
    avatar_id = fields.pop("avatar_id", None)
    if avatar_id is None:
        raise ServiceError("bad_request", "'avatar_id' is missing")
    audio = fields.pop("audio", "true").lower()
    if audio not in _BOOLEANS:
        raise ServiceError("invalid_option", f"audio = {audio[:100]!r}, expected true or false")
    options = parse_options(fields)
    if options.output != "video":
        raise ServiceError("invalid_option", f"output = {options.output!r}, expected video")
    start = LiveStart(
        options=options,
        avatar_id=avatar_id,
        sample_rate=wire.SAMPLE_RATE,
        idle=True,
    )
    settings = context.settings
    offer = Offer(
        sdp=await _sdp(request),
        ice_servers=tuple(one.get_secret_value() for one in settings.ice_servers),
        networks=settings.webrtc_networks or (None if calls.loopback else ()),
        loopback=calls.loopback,
        audio=_BOOLEANS[audio],
    )
    begun = await calls.begin(context, start, offer)
    headers = {"Location": f"/webrtc/{begun.job_id}", "X-Job-Id": begun.job_id, **CONTENT_SOURCE}
    return Response(begun.answer, 201, headers, SDP)


@router.delete("/webrtc/{job_id}", status_code=204)
async def end(context: Context, job_id: JobId) -> None:
    """End a session at once, whichever API process has it."""
    if not await context.producer.is_live(job_id):
        raise ServiceError("not_found", f"there is no session {job_id!r}")
    await context.producer.cancel(job_id)


async def _sdp(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != SDP:
        raise ServiceError("unsupported_media", f"Content-Type = {kind[:100]!r}, expected {SDP}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_OFFER_BYTES:
            raise ServiceError(
                "too_large", f"the offer is too large, expected at most {MAX_OFFER_BYTES} bytes"
            )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ServiceError("bad_request", "the offer is not UTF-8") from error
    if not text.startswith("v=0"):
        raise ServiceError("bad_request", "the offer is not SDP, which begins with 'v=0'")
    return text
