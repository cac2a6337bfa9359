"""What every route needs: the broker and the settings, held by the application."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, cast

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection, Request

from server.api.access import OWNER, Access
from server.api.protocol import ModelView, ProblemView
from server.broker.producer import JobProducer
from server.errors import ServiceError
from server.settings import Settings

_PROBLEM: dict[str, object] = {
    "content": {"application/problem+json": {"schema": ProblemView.model_json_schema()}},
    "description": "what is wrong, with a stable `code`",
}
PROBLEMS: dict[int | str, dict[str, object]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}
_ID = re.compile(r"[0-9a-f]{24}", re.ASCII)


@dataclass(frozen=True)
class RequestContext:
    client: JobProducer
    settings: Settings
    access: Access


def context(request: HTTPConnection) -> RequestContext:
    """The application's, made at its start, for the owner that `Access.admit` found."""
    here = cast(RequestContext, request.app.state.context)
    client = replace(here.client, owner=request.scope.get(OWNER, ""))
    return replace(here, client=client)


async def admitted(request: Request) -> str:
    """The name of the client; raises what `Access.admit` raises."""
    return await context(request).access.admit(request)


# Every route but health, documents and the page. The schemes only describe the keys to readers.
DOOR = [
    Depends(admitted),
    Security(HTTPBearer(auto_error=False, scheme_name="key")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key header")),
]


def an_id(text: str) -> str:
    """An id of a job or an avatar, before it names a key. Raises `ServiceError` ``not_found``."""
    if not _ID.fullmatch(text):
        raise ServiceError("not_found", f"{text[:40]!r} is no id")
    return text


async def job_id(job_id: str) -> str:
    return an_id(job_id)


async def avatar_id(avatar_id: str) -> str:
    return an_id(avatar_id)


JobId = Annotated[str, Depends(job_id)]
AvatarId = Annotated[str, Depends(avatar_id)]


async def choose_model(client: JobProducer, name: str | None) -> ModelView:
    """The student called ``name``, or the default.

    Raises `ServiceError` ``no_worker`` when none is loaded, ``invalid_option`` for another name.
    """
    models = (await client.models()).models
    if not models:
        raise ServiceError("no_worker", "no worker is connected yet; try again in a moment")
    for model in models:
        if name is None or model.name == name:
            return model
    allowed = ", ".join(model.name for model in models)
    raise ServiceError("invalid_option", f"model is {name!r}; it must be one of {allowed}")
