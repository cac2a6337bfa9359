"""`/jobs/{id}`: how an animation stands, its video, its end.

A job answered at once is seen here too, but its video goes to the request that made it and is not
kept.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.context import DOOR, PROBLEMS, JobId, context
from server.api.protocol import JobView
from server.api.video import video_response
from server.errors import ServiceError

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], responses=PROBLEMS, dependencies=DOOR)


@router.get("")
async def read(request: Request, job_id: JobId) -> JobView:
    """Status and progress."""
    view = await context(request).client.view(job_id)
    if view is None:
        raise ServiceError("not_found", f"there is no job {job_id!r}")
    return view


@router.get("/video", response_class=Response, responses={200: {"content": {"video/mp4": {}}}})
async def video(request: Request, job_id: JobId) -> Response:
    """The MP4 from its start; when it is still being made, as it is made."""
    client = context(request).client
    if not await client.keeps_video(job_id):
        raise ServiceError("not_found", f"no video of job {job_id!r} is kept")
    events = client.follow(job_id, consume=False)
    return await video_response(request, job_id, events, _nothing)


@router.delete("", status_code=204)
async def cancel(request: Request, job_id: JobId) -> None:
    """Stop the job, free its place and drop its video."""
    client = context(request).client
    if await client.view(job_id) is None:
        raise ServiceError("not_found", f"there is no job {job_id!r}")
    await client.cancel(job_id)
    await client.forget(job_id)


async def _nothing() -> None:
    """A reader of a kept video leaves nothing behind."""
