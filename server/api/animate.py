"""`POST /animate`: a portrait and speech in, a talking video or its motion out while it is made."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server import logs, traces
from server.api.dependencies import (
    ADMITTED,
    Context,
    RequestContext,
    choose_model,
    place_for,
    require_avatar,
)
from server.api.problems import PROBLEMS
from server.api.protocol import (
    ALLOWED,
    CONTENT_SOURCE,
    AnimationOptions,
    JobView,
    location,
    parse_options,
)
from server.api.uploads import Upload, check_portrait, read_upload
from server.api.video import HEADERS, MADE, first_fragment_timed, motion_format, video_response
from server.broker import estimates, messages
from server.errors import ServiceError

_UNREAD_S = 5.0  # of video that waits for its reader

router = APIRouter(tags=["animation"], dependencies=ADMITTED)


def _form_schema() -> dict[str, Any]:
    options = AnimationOptions.model_json_schema()["properties"]
    for name, allowed in ALLOWED.items():
        options[name]["description"] = f"{options[name]['description']}: {allowed}"
    files = {
        "portrait": {
            "type": "string",
            "format": "binary",
            "description": "JPEG, PNG, WebP, AVIF or HEIC",
        },
        "avatar_id": {"type": "string", "description": "instead of a portrait"},
        "audio": {
            "type": "string",
            "format": "binary",
            "description": "WAV, FLAC, MP3, Ogg, M4A, WebM and more",
        },
    }
    schema = {
        "type": "object",
        "required": ["audio"],
        "oneOf": [{"required": ["portrait"]}, {"required": ["avatar_id"]}],
        "properties": {**files, **options},
        "additionalProperties": False,
    }
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


@router.post(
    "/animate",
    response_class=Response,
    openapi_extra=_form_schema(),
    responses={
        200: MADE,
        202: {
            "model": JobView,
            "description": "with `Prefer: respond-async`",
            "headers": {**HEADERS, "Location": location("the job")},
        },
        **PROBLEMS,
    },
)
async def animate(context: Context, request: Request) -> Response:
    """Animate a portrait or an avatar with speech."""
    keep = "respond-async" in request.headers.get("prefer", "").lower()
    async with place_for(context, request, "animate") as place:
        upload = await read_upload(request, ("portrait", "audio"), place.write)
        job = await _job(context, upload, keep=keep)
        start_s = time.monotonic()
        expected_s, guessed = _expected_s(context, upload, keep=keep)
        video_bytes = estimates.output_bytes(expected_s, job.options)
        job_id = await place.submit(job, video_bytes=video_bytes, guessed=guessed)
    logs.bind(job=job_id)
    traces.annotate(job=job_id)
    if keep:
        view = await context.producer.view(job_id)
        body = None if view is None else view.model_dump()
        headers = {
            "Location": f"/jobs/{job_id}",
            "X-Job-Id": job_id,
            "X-Seed": str(job.seed),
            "Preference-Applied": "respond-async",
            **CONTENT_SOURCE,
        }
        return JSONResponse(body, 202, headers=headers)
    events = context.producer.follow(job_id, consume=True)
    events = first_fragment_timed(events, "animate", start_s)
    abandon = partial(context.producer.abandon, job_id)
    motion = motion_format(request) if job.options.output == "motion" else None
    return await video_response(request, job_id, events, on_close=abandon, motion=motion)


async def _job(context: RequestContext, upload: Upload, *, keep: bool) -> messages.AnimateRequest:
    fields = dict(upload.fields)
    avatar_id = fields.pop("avatar_id", None)
    options = parse_options(fields)
    await _check_parts(context, upload, avatar_id)
    model = await choose_model(context.producer, options.model)
    seed = secrets.randbelow(2**63) if options.seed is None else options.seed
    return messages.AnimateRequest(
        options=options,
        model=model.name,
        seed=seed,
        avatar_id=avatar_id,
        keep=keep,
    )


def _expected_s(context: RequestContext, upload: Upload, *, keep: bool) -> tuple[float, bool]:
    """Seconds of video that will wait for readers at once, and whether that is a guess.

    A video that is read as it is made waits for its reader; a kept one is stored whole.
    """
    if not keep:
        return _UNREAD_S, False
    audio, longest_s = upload.files["audio"], context.settings.max_audio_s
    stated_s = estimates.speech_s(audio.head, audio.size)
    if stated_s is not None:
        return min(stated_s, longest_s), False
    return min(estimates.longest_speech_s(audio.size), longest_s), True


async def _check_parts(context: RequestContext, upload: Upload, avatar_id: str | None) -> None:
    if "audio" not in upload.files:
        raise ServiceError("bad_request", "the file 'audio' is missing")
    if ("portrait" in upload.files) == (avatar_id is not None):
        raise ServiceError("bad_request", "expected either the file 'portrait' or 'avatar_id'")
    if not upload.files["audio"].size:
        raise ServiceError("empty_audio", "the file 'audio' is empty")
    if avatar_id is None:
        portrait = upload.files["portrait"]
        check_portrait(portrait.head, portrait.size, context.settings.max_portrait_bytes)
    else:
        await require_avatar(context.producer, avatar_id)
