"""Jobs of a moment: an upload in, one answer out, and nothing is kept of them."""

from __future__ import annotations

from fastapi import Request

from server import logs
from server.api.dependencies import RequestContext
from server.api.video import ClientGone, first_event, unless_gone
from server.broker import messages
from server.broker.place import Place
from server.errors import ServiceError


async def short_answer(
    context: RequestContext, request: Request, place: Place, *, job: messages.AnyRequest
) -> messages.Started | messages.AvatarCreated | messages.Verified:
    """Submit ``job`` with the uploads of ``place`` and wait for its first event.

    Raises the `ServiceError` of a job that failed.
    """
    job_id = await place.submit(job)
    logs.bind(job=job_id)
    try:
        events = context.producer.follow(job_id, consume=True)
        return await unless_gone(request.receive, first_event(events))
    except ClientGone as error:
        raise ServiceError("bad_request", "the client disconnected") from error
    finally:
        await context.producer.abandon(job_id)
