"""A job's events as an HTTP response, fragment by fragment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import metrics
from server.broker import messages
from server.errors import ServiceError

log = logging.getLogger("fada.api")

T = TypeVar("T")
GiveUp = Callable[[], Awaitable[None]]

_CLIENT_CLOSED = 499  # nobody sees it


class ClientGone(Exception):
    """The client hung up while its answer was being made."""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Wait for ``work`` and for the client's hanging up; raises `ClientGone` if that is first."""
    main = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({main, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            raise ClientGone
        return main.result()
    finally:
        for task in (main, gone):
            task.cancel()
        await asyncio.gather(main, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def first_event(
    events: AsyncIterator[messages.AnyEvent],
) -> messages.Started | messages.AvatarCreated:
    """The event that decides the status code. Raises the `ServiceError` of a job that failed."""
    async for event in events:
        if isinstance(event, messages.Started | messages.AvatarCreated):
            return event
        if isinstance(event, messages.Failed):
            raise ServiceError(event.code, event.detail)
        if isinstance(event, messages.Cancelled):
            raise ServiceError("not_found", "the job was cancelled")
    raise ServiceError("not_found", "the job has expired")


async def first_fragment_timed(
    events: AsyncIterator[messages.AnyEvent], kind: str, began_s: float
) -> AsyncIterator[messages.AnyEvent]:
    """The same events; how long after ``began_s`` the first fragment goes out is measured."""
    waiting = True
    async for event in events:
        if waiting and isinstance(event, messages.Fragment):
            metrics.first_fragment(kind, time.monotonic() - began_s)
            waiting = False
        yield event


async def video_response(
    request: Request,
    job_id: str,
    events: AsyncIterator[messages.AnyEvent],
    give_up: GiveUp,
) -> Response:
    """Wait for the job's start and answer with its video; ``give_up`` when that cannot be.

    Raises the `ServiceError` of a job that failed before its first fragment.
    """
    try:
        started = await unless_gone(request.receive, first_event(events))
    except ClientGone:
        await give_up()
        return Response(status_code=_CLIENT_CLOSED)
    except BaseException:
        await give_up()
        raise
    if not isinstance(started, messages.Started):
        raise TypeError(f"an animation starts with a video, got {started.type}")
    return VideoResponse(job_id, started, events, give_up)


class VideoResponse(Response):
    """Sends the init segment and the fragments as they come.

    A job that fails now can no longer change the status: the chunked body is then left without
    its end, which every client tells from a whole one.
    """

    media_type = "video/mp4"

    def __init__(
        self,
        job_id: str,
        started: messages.Started,
        events: AsyncIterator[messages.AnyEvent],
        give_up: GiveUp,
    ) -> None:
        super().__init__(
            headers={
                "X-Job-Id": job_id,
                "X-Seed": str(started.seed),
                "Cache-Control": "no-store",
                "Content-Disposition": f'inline; filename="{job_id}.mp4"',
            }
        )
        del self.headers["content-length"]
        self._job_id = job_id
        self._started = started
        self._events = events
        self._give_up = give_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGone:
            log.info("job %s: the client hung up", self._job_id)
        finally:
            await self._give_up()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send(_body(self._started.data))
        async for event in self._events:
            if isinstance(event, messages.Fragment):
                await send(_body(event.data))
            elif isinstance(event, messages.Done):
                with contextlib.suppress(OSError):  # the client may leave with the last byte
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            else:
                log.warning("job %s ended as %s within its video", self._job_id, event.type)
                return


def _body(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}
