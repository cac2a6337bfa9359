"""`/avatars`: portraits prepared once and used many times.

A worker prepares them, the broker stores them.
"""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.dependencies import (
    ADMITTED,
    AvatarId,
    Context,
    choose_model,
    no_avatar,
    place_for,
)
from server.api.problems import PROBLEMS
from server.api.protocol import AvatarView, location
from server.api.short_jobs import short_answer
from server.api.uploads import check_portrait, read_upload
from server.broker import messages
from server.errors import ServiceError

router = APIRouter(prefix="/avatars", tags=["avatars"], responses=PROBLEMS, dependencies=ADMITTED)

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
                        "model": {
                            "type": "string",
                            "description": "a model of the latent space to prepare it for",
                        },
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}


@router.post(
    "",
    status_code=201,
    openapi_extra=_FORM,
    responses={201: {"headers": {"Location": location("the avatar")}}},
)
async def create(context: Context, request: Request, response: Response) -> AvatarView:
    """Prepare a portrait; later requests name it by `avatar_id`.

    It fits the models of one latent space: the default model's, or that of `model`.
    """
    async with place_for(context, request, "avatar") as place:
        upload = await read_upload(request, ("portrait",), place.write)
        unknown = sorted(set(upload.fields) - {"model"})
        if unknown:
            raise ServiceError("bad_request", f"field = {unknown[0]!r}, expected 'model' or none")
        if "portrait" not in upload.files:
            raise ServiceError("bad_request", "the file 'portrait' is missing")
        portrait = upload.files["portrait"]
        check_portrait(portrait.head, portrait.size, context.settings.max_portrait_bytes)
        model = await choose_model(context.producer, upload.fields.get("model"))
        job = messages.AvatarRequest(model=model.name, avatar_id=secrets.token_hex(12))
        created = await short_answer(context, request, place, job=job)
    if not isinstance(created, messages.AvatarCreated):
        raise TypeError(f"first event = {created.type!r}, expected 'avatar_created'")
    response.headers["Location"] = f"/avatars/{created.avatar.avatar_id}"
    return created.avatar


@router.get("/{avatar_id}")
async def read(context: Context, avatar_id: AvatarId) -> AvatarView:
    """The avatar's size and face."""
    avatar = await context.producer.avatar(avatar_id)
    if avatar is None:
        raise no_avatar(avatar_id)
    return avatar


@router.delete("/{avatar_id}", status_code=204)
async def delete(context: Context, avatar_id: AvatarId) -> None:
    """Delete an avatar; videos that are being made of it continue."""
    if not await context.producer.delete_avatar(avatar_id):
        raise no_avatar(avatar_id)
