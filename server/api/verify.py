"""`POST /verify`: which marks an uploaded video bears, and whether they hold."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from server import logs
from server.api.dependencies import ADMITTED, Context
from server.api.problems import PROBLEMS
from server.api.protocol import MarksView
from server.api.uploads import read_upload
from server.api.video import ClientGone, first_event, unless_gone
from server.broker import messages
from server.errors import ServiceError

router = APIRouter(tags=["marks"], responses=PROBLEMS, dependencies=ADMITTED)

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["video"],
                    "properties": {"video": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("/verify", openapi_extra=_FORM)
async def verify(context: Context, request: Request) -> MarksView:
    """Read a video's marks and check its C2PA manifest; the video is not kept."""
    upload = await read_upload(request, ("video",))
    if set(upload.fields) or "video" not in upload.files:
        raise ServiceError("bad_request", "expected the file 'video' and no other part")
    job_id = await context.producer.submit(messages.VerifyRequest(), upload.files)
    logs.bind(job=job_id)
    try:
        events = context.producer.follow(job_id, consume=True)
        verified = await unless_gone(request.receive, first_event(events))
    except ClientGone as error:
        raise ServiceError("bad_request", "the client disconnected") from error
    finally:
        await context.producer.abandon(job_id)
    if not isinstance(verified, messages.Verified):
        raise TypeError(f"first event = {verified.type!r}, expected 'verified'")
    return verified.marks
