"""A job's video or motion as an HTTP response: as it is made, or finished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server import metrics
from server.api.protocol import CONTENT_SOURCE
from server.broker import messages
from server.broker.videos import FinishedVideo
from server.errors import ServiceError
from server.motion import JSON_LINES, LIVE_LINK, MotionFormat
from server.tasks import cancel_and_wait

log = logging.getLogger("fada.api")

T = TypeVar("T")
OnClose = Callable[[], Awaitable[None]]

# For the OpenAPI document: what `video_headers` says, and the answers that bear it.
HEADERS: dict[str, dict[str, object]] = {
    name: {"description": text, "required": name != "X-Seed", "schema": {"type": "string"}}
    for name, text in {
        "X-Job-Id": "the job that makes the video",
        "X-Seed": "with the same seed, the same video",
        "X-Content-Source": "IPTC's term for what a machine made",
    }.items()
}
MP4: dict[str, object] = {
    "description": "fragmented MP4, sent as it is made; finished, with its length",
    "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
    "headers": HEADERS,
}
_MOTION_CONTENT = {
    one.media_type: {"schema": {"type": "string"}} for one in (JSON_LINES, LIVE_LINK)
}
MOTION: dict[str, object] = {
    "description": "actions and head pose, sent as they are made",
    "content": _MOTION_CONTENT,
    "headers": HEADERS,
}
MADE: dict[str, object] = {
    **MP4,
    "description": "fragmented MP4, or with `output=motion` actions and head pose, as it is made",
    "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}, **_MOTION_CONTENT},
}

_CLIENT_CLOSED = 499  # only the log shows it


class ClientGone(Exception):
    """The client disconnected before its response was complete."""


class Detached(ClientGone):
    """A connection has lost its live session, which goes on: the client may come back.

    ``error``: what to send where it is another connection that has the session.
    """

    def __init__(self, error: ServiceError | None = None) -> None:
        super().__init__()
        self.error = error


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Wait for ``work``; raises `ClientGone` if the client disconnects first."""
    main = asyncio.create_task(work)
    disconnect = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({main, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            raise ClientGone
        return main.result()
    finally:
        await cancel_and_wait([main, disconnect])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def first_event(
    events: AsyncIterator[messages.AnyEvent],
) -> messages.Started | messages.AvatarCreated | messages.Verified:
    """The event that decides the status code; raises the `ServiceError` of a failed job."""
    async for event in events:
        if isinstance(event, messages.Started | messages.AvatarCreated | messages.Verified):
            return event
        if isinstance(event, messages.Failed):
            raise ServiceError.published(event.code, event.detail)
        if isinstance(event, messages.Cancelled):
            raise ServiceError("not_found", "the job was cancelled")
    raise ServiceError("not_found", "the job has expired")


async def first_fragment_timed(
    events: AsyncIterator[messages.AnyEvent], kind: str, start_s: float
) -> AsyncIterator[messages.AnyEvent]:
    """Yield the same events; record the time from ``start_s`` to the first fragment."""
    waiting = True
    async for event in events:
        if waiting and isinstance(event, messages.JobFragment):
            metrics.first_fragment(kind, time.monotonic() - start_s)
            waiting = False
        yield event


async def video_response(
    request: Request,
    job_id: str,
    events: AsyncIterator[messages.AnyEvent],
    *,
    on_close: OnClose,
    motion: MotionFormat | None = None,
) -> Response:
    """Wait until the job has started and respond with its video, or with its ``motion``.

    ``on_close`` runs once when the response ends, for whatever reason. Raises the `ServiceError`
    of a job that failed before its first fragment.
    """
    try:
        started = await unless_gone(request.receive, first_event(events))
    except ClientGone:
        await on_close()
        return Response(status_code=_CLIENT_CLOSED)
    except BaseException:
        await on_close()
        raise
    if not isinstance(started, messages.Started):
        raise TypeError(f"first event = {started.type!r}, expected 'started'")
    return VideoResponse(job_id, started, events, on_close=on_close, motion=motion)


def motion_format(request: Request) -> MotionFormat:
    """The one that ``Accept`` asks for: JSON lines unless it names CSV."""
    return LIVE_LINK if LIVE_LINK.media_type in request.headers.get("accept", "") else JSON_LINES


class VideoResponse(Response):
    """Sends the init segment and the fragments as they arrive, motion as text.

    A job that fails after its start cannot change the status any more: the chunked body is then
    left without its last chunk, which HTTP clients report as an incomplete response.
    """

    def __init__(
        self,
        job_id: str,
        started: messages.Started,
        events: AsyncIterator[messages.AnyEvent],
        *,
        on_close: OnClose,
        motion: MotionFormat | None = None,
    ) -> None:
        suffix = "mp4" if motion is None else motion.suffix
        super().__init__(
            headers=video_headers(job_id, started.seed, started.warnings, suffix=suffix),
            media_type="video/mp4" if motion is None else motion.media_type,
        )
        del self.headers["content-length"]
        self._job_id = job_id
        self._started = started
        self._events = events
        self._on_close, self._motion = on_close, motion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGone:
            log.info("job %s: the client disconnected", self._job_id)
        finally:
            await self._on_close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        started, motion = self._started, self._motion
        await send(_body(started.data if motion is None else motion.header(started.fps).encode()))
        async for event in self._events:
            if isinstance(event, messages.JobFragment):
                data = event.data
                if motion is not None:
                    data = motion.text(event.first_frame, data, started.fps).encode()
                await send(_body(data))
            elif isinstance(event, messages.JobDone):
                with contextlib.suppress(OSError):  # the client may disconnect after the last byte
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            else:
                log.warning("job %s: %s after the video had started", self._job_id, event.type)
                return


def video_headers(
    job_id: str,
    seed: int | None = None,
    warnings: Iterable[str] = (),
    *,
    suffix: str = "mp4",
) -> dict[str, str]:
    """What every response with a video says; ``seed`` and ``warnings`` as far as known."""
    warning = "; ".join(warnings)
    return {
        "X-Job-Id": job_id,
        **({} if seed is None else {"X-Seed": str(seed)}),
        **({"X-Warning": warning} if warning else {}),
        **CONTENT_SOURCE,
        "Cache-Control": "no-store",
        "Content-Disposition": f'inline; filename="{job_id}.{suffix}"',
    }


def finished_response(
    job_id: str,
    video: FinishedVideo,
    part: range | None,
    *,
    read: Callable[..., AsyncIterator[bytes]] | None,
) -> Response:
    """The whole video, or ``part`` of it with status 206.

    Players ask for parts, so that they can seek. ``read`` yields the bytes of a ``part``; without
    it, the response has no body.
    """
    sent = range(video.size) if part is None else part
    headers = {
        **video_headers(job_id, video.seed, video.warnings),
        "Accept-Ranges": "bytes",
        "Content-Length": str(len(sent)),
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{video.size}"
    status = 200 if part is None else 206
    if read is None:
        return Response(headers=headers, media_type="video/mp4")
    return StreamingResponse(read(part=sent), status, headers, media_type="video/mp4")


def byte_range(header: str, size: int) -> range | None:
    """The one range that a ``Range`` header asks for (RFC 9110, 14.2), of ``size`` bytes.

    ``None`` where the header is to be ignored: another unit, several ranges or no valid one.
    Raises `ServiceError` ``range_not_satisfiable`` for a range that begins beyond the end.
    """
    match = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last bytes
        start, stop = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        stop = min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size:
        raise ServiceError(
            "range_not_satisfiable", f"Range = {header!r}, expected bytes=0-{size - 1} at most"
        )
    return range(start, stop)


def _body(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}
