"""`/jobs/{id}`: an animation's status, its video, its cancellation.

A job whose request was answered with the video is listed here too, but its video is not kept.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.dependencies import ADMITTED, Context, JobId
from server.api.problems import PROBLEMS
from server.api.protocol import JobView
from server.api.video import video_response
from server.errors import ServiceError

router = APIRouter(
    prefix="/jobs/{job_id}", tags=["jobs"], responses=PROBLEMS, dependencies=ADMITTED
)


@router.get("")
async def read(context: Context, job_id: JobId) -> JobView:
    """Status and progress."""
    view = await context.producer.view(job_id)
    if view is None:
        raise _no_job(job_id)
    return view


@router.get("/video", response_class=Response, responses={200: {"content": {"video/mp4": {}}}})
async def video(context: Context, job_id: JobId, request: Request) -> Response:
    """The MP4 from its start; while the job runs, as it is made."""
    if not await context.producer.keeps_video(job_id):
        raise ServiceError("not_found", f"no video of job {job_id!r} is kept")
    events = context.producer.follow(job_id, consume=False)
    return await video_response(request, job_id, events, on_close=_keep)


@router.delete("", status_code=204)
async def cancel(context: Context, job_id: JobId) -> None:
    """Stop the job, free its place and delete its video."""
    if await context.producer.view(job_id) is None:
        raise _no_job(job_id)
    await context.producer.cancel(job_id)
    await context.producer.forget(job_id)


def _no_job(job_id: str) -> ServiceError:
    return ServiceError("not_found", f"there is no job {job_id!r}")


async def _keep() -> None:
    """A kept video outlives its readers."""
