"""`/avatars`: portraits prepared once and used many times.

The worker prepares; the broker keeps.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server import logs
from server.api.context import DOOR, PROBLEMS, AvatarId, choose_model, context
from server.api.protocol import AvatarView
from server.api.uploads import check_portrait, read_upload
from server.api.video import ClientGone, first_event, unless_gone
from server.broker import messages
from server.errors import ServiceError

router = APIRouter(prefix="/avatars", tags=["avatars"], responses=PROBLEMS, dependencies=DOOR)

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["portrait"],
                    "properties": {
                        "portrait": {"type": "string", "format": "binary"},
                        "model": {"type": "string", "description": "whose latent space it is for"},
                    },
                }
            }
        },
    }
}


@router.post("", status_code=201, openapi_extra=_FORM)
async def create(request: Request, response: Response) -> AvatarView:
    """Prepare a portrait; later requests name it by `avatar_id`.

    It is for students of one latent space: the default's, or that of `model`.
    """
    here = context(request)
    upload = await read_upload(request, ("portrait",))
    surplus = set(upload.fields) - {"model"}
    if surplus:
        raise ServiceError("bad_request", f"{', '.join(sorted(surplus))}: no field of this call")
    if "portrait" not in upload.files:
        raise ServiceError("bad_request", "the file 'portrait' is missing")
    check_portrait(upload.files["portrait"], here.settings.max_portrait_bytes)
    model = await choose_model(here.client, upload.fields.get("model"))
    job = messages.AvatarRequest(model=model.name, avatar_id=secrets.token_hex(12))
    job_id = await here.client.submit(job, upload.files)
    logs.bind(job=job_id)
    leave = partial(here.client.abandon, job_id)
    try:
        events = here.client.follow(job_id, consume=True)
        made = await unless_gone(request.receive, first_event(events))
    except ClientGone as error:
        raise ServiceError("bad_request", "the client hung up") from error
    finally:
        await leave()
    if not isinstance(made, messages.AvatarCreated):
        raise TypeError(f"an avatar job makes an avatar, got {made.type}")
    response.headers["Location"] = f"/avatars/{made.avatar.avatar_id}"
    return made.avatar


@router.get("/{avatar_id}")
async def read(request: Request, avatar_id: AvatarId) -> AvatarView:
    """What is known of an avatar."""
    avatar = await context(request).client.avatar(avatar_id)
    if avatar is None:
        raise ServiceError("not_found", f"there is no avatar {avatar_id!r}")
    return avatar


@router.delete("/{avatar_id}", status_code=204)
async def delete(request: Request, avatar_id: AvatarId) -> None:
    """Forget an avatar; videos being made of it go on."""
    if not await context(request).client.delete_avatar(avatar_id):
        raise ServiceError("not_found", f"there is no avatar {avatar_id!r}")
