"""`POST /animate`: a portrait and speech in, a talking video out while it is being made."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server import logs, traces
from server.api.context import DOOR, PROBLEMS, RequestContext, an_id, choose_model, context
from server.api.protocol import ALLOWED, AnimationOptions, parse_options
from server.api.uploads import Upload, check_portrait, read_upload
from server.api.video import first_fragment_timed, video_response
from server.broker import messages
from server.broker.producer import JobProducer
from server.errors import ServiceError

router = APIRouter(tags=["animation"], dependencies=DOOR)


def _form_schema() -> dict[str, Any]:
    options = AnimationOptions.model_json_schema()["properties"]
    for name, words in ALLOWED.items():
        options[name]["description"] = f"{options[name]['description']}: {words}"
    files = {
        "portrait": {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP"},
        "avatar_id": {"type": "string", "description": "instead of a portrait"},
        "audio": {
            "type": "string",
            "format": "binary",
            "description": "WAV, FLAC, MP3, OGG, M4A or WebM",
        },
    }
    schema = {"type": "object", "required": ["audio"], "properties": {**files, **options}}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


@router.post(
    "/animate",
    response_class=Response,
    openapi_extra=_form_schema(),
    responses={
        200: {"content": {"video/mp4": {}}, "description": "fragmented MP4, sent as it is made"},
        202: {"description": "with `Prefer: respond-async`; `Location` names the job"},
        **PROBLEMS,
    },
)
async def animate(request: Request) -> Response:
    """Animate a portrait, or an avatar made before, with speech."""
    here = context(request)
    upload = await read_upload(request, ("portrait", "audio"))
    keep = "respond-async" in request.headers.get("prefer", "").lower()
    job = await _job(here, upload, keep=keep)
    began_s = time.monotonic()
    job_id = await here.client.submit(job, upload.files)
    logs.bind(job=job_id)
    traces.note(job=job_id)
    if keep:
        view = await here.client.view(job_id)
        body = None if view is None else view.model_dump()
        headers = {"Location": f"/jobs/{job_id}", "X-Job-Id": job_id, "X-Seed": str(job.seed)}
        return JSONResponse(body, 202, headers={**headers, "Preference-Applied": "respond-async"})
    events = here.client.follow(job_id, consume=True)
    events = first_fragment_timed(events, "animate", began_s)
    return await video_response(request, job_id, events, partial(here.client.abandon, job_id))


async def _job(here: RequestContext, upload: Upload, *, keep: bool) -> messages.AnimateRequest:
    fields = dict(upload.fields)
    avatar_id = fields.pop("avatar_id", None)
    options = parse_options(fields)
    await _check_parts(here, upload, avatar_id)
    model = await choose_model(here.client, options.model)
    seed = secrets.randbelow(2**63) if options.seed is None else options.seed
    return messages.AnimateRequest(
        options=options,
        model=model.name,
        seed=seed,
        avatar_id=avatar_id,
        keep=keep,
    )


async def _check_parts(here: RequestContext, upload: Upload, avatar_id: str | None) -> None:
    if "audio" not in upload.files:
        raise ServiceError("bad_request", "the file 'audio' is missing")
    if ("portrait" in upload.files) == (avatar_id is not None):
        raise ServiceError("bad_request", "give either the file 'portrait' or 'avatar_id'")
    if not upload.files["audio"]:
        raise ServiceError("empty_audio", "the audio file has 0 bytes")
    if avatar_id is None:
        check_portrait(upload.files["portrait"], here.settings.max_portrait_bytes)
    else:
        await check_avatar(here.client, avatar_id)


async def check_avatar(client: JobProducer, avatar_id: str) -> None:
    """Raises `ServiceError` ``not_found``."""
    if await client.avatar(an_id(avatar_id)) is None:
        raise ServiceError("not_found", f"there is no avatar {avatar_id!r}")
