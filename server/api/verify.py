"""`POST /verify`: which marks an uploaded video bears, and whether they hold."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from server.api.dependencies import ADMITTED, Context, place_for
from server.api.problems import PROBLEMS
from server.api.protocol import MarksView
from server.api.short_jobs import short_answer
from server.api.uploads import read_upload
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
                    "additionalProperties": False,
                }
            }
        },
    }
}


@router.post("/verify", openapi_extra=_FORM)
async def verify(context: Context, request: Request) -> MarksView:
    """Read a video's marks and check its C2PA manifest; the video is not kept."""
    async with place_for(context, request, "verify") as place:
        upload = await read_upload(request, ("video",), place.write)
        if set(upload.fields) or "video" not in upload.files:
            raise ServiceError("bad_request", "expected the file 'video' and no other part")
        if not upload.files["video"].size:
            raise ServiceError("unsupported_media", "the file 'video' is empty")
        verified = await short_answer(context, request, place, job=messages.VerifyRequest())
    if not isinstance(verified, messages.Verified):
        raise TypeError(f"first event = {verified.type!r}, expected 'verified'")
    return verified.marks
