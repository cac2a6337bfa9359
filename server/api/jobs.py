"""`/jobs/{id}`: an animation's status, its video or motion, its cancellation.

A job whose request was answered with the video is listed here too, but its video is not kept.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from server.api.dependencies import ADMITTED, Context, JobId, RequestContext
from server.api.problems import PROBLEMS, problem_response
from server.api.protocol import JobView
from server.api.video import (
    HEADERS,
    MOTION,
    MP4,
    byte_range,
    finished_response,
    motion_format,
    video_headers,
    video_response,
)
from server.broker.videos import finished_video, read_video
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


_PART: dict[str, object] = {
    **MP4,
    "description": "a range of a finished video",
    "headers": {
        **HEADERS,
        "Content-Range": {"required": True, "schema": {"type": "string"}},
        "Accept-Ranges": {"required": True, "schema": {"type": "string"}},
    },
}
Range = Annotated[
    str | None, Header(description="`bytes=first-last` of a finished video", alias="Range")
]


@router.get("/video", response_class=Response, responses={200: MP4, 206: _PART})
@router.head("/video", response_class=Response, responses={200: MP4, 206: _PART})
async def video(
    context: Context, job_id: JobId, request: Request, wanted: Range = None
) -> Response:
    """The MP4: finished, with its length and by ranges; else from its start, as it is made."""
    await _require(context, job_id, "video")
    connection = context.producer.connection
    finished = await finished_video(connection, job_id)
    head = request.method == "HEAD"
    if finished is not None:
        try:
            part = None if head or wanted is None else byte_range(wanted, finished.size)
        except ServiceError as error:
            return problem_response(error, {"Content-Range": f"bytes */{finished.size}"})
        read = partial(read_video, connection, job_id, finished)
        return finished_response(job_id, finished, part, read=None if head else read)
    if head:
        return Response(headers=video_headers(job_id), media_type="video/mp4")
    events = context.producer.follow(job_id, consume=False)
    return await video_response(request, job_id, events, on_close=_keep)


@router.get("/motion", response_class=Response, responses={200: MOTION})
async def motion(context: Context, job_id: JobId, request: Request) -> Response:
    """The motion from its start, as it is made: JSON lines, or a table by `Accept: text/csv`."""
    await _require(context, job_id, "motion")
    events = context.producer.follow(job_id, consume=False)
    return await video_response(
        request, job_id, events, on_close=_keep, motion=motion_format(request)
    )


@router.delete("", status_code=204)
async def cancel(context: Context, job_id: JobId) -> None:
    """Stop the job, free its place and delete its video."""
    if await context.producer.view(job_id) is None:
        raise _no_job(job_id)
    await context.producer.cancel(job_id)
    await context.producer.forget(job_id)


def _no_job(job_id: str) -> ServiceError:
    return ServiceError("not_found", f"there is no job {job_id!r}")


async def _require(context: RequestContext, job_id: str, output: str) -> None:
    """Raises `ServiceError` ``not_found`` unless this output of the job is kept."""
    kept = await context.producer.kept_output(job_id)
    if kept == output:
        return
    detail = f"no {output} of job {job_id!r} is kept"
    raise ServiceError("not_found", f"{detail}; GET /jobs/{job_id}/{kept}" if kept else detail)


async def _keep() -> None:
    """A kept video outlives its readers."""
