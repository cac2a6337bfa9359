"""FastAPI dependencies: the request's context, its client's key, and ids in paths."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Annotated, cast

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection, Request

from server.api.access import Access
from server.api.protocol import ModelView, unknown_model
from server.broker.place import Place
from server.broker.producer import JobProducer
from server.errors import ServiceError
from server.settings import Settings

_ID = re.compile(r"[0-9a-f]{24}", re.ASCII)


@dataclass(frozen=True)
class RequestContext:
    """What a route works with; ``client`` is the admitted client's name."""

    producer: JobProducer
    settings: Settings
    access: Access
    client: str = ""


def service_context(connection: HTTPConnection) -> RequestContext:
    """The context that the application made at its start, for no particular client."""
    return cast(RequestContext, connection.app.state.context)


async def admit(connection: HTTPConnection) -> RequestContext:
    """The context of an admitted client; raises what `Access.admit` raises."""
    context = service_context(connection)
    client = await context.access.admit(connection)
    producer = replace(context.producer, owner=client.owner, client=client.name)
    return replace(context, producer=producer, client=client.name)


def place_for(
    context: RequestContext, request: Request, kind: str
) -> AbstractAsyncContextManager[Place]:
    """A place for a job of this ``kind``, with room for the request's body; see `JobProducer`."""
    most = context.settings.max_upload_bytes
    declared = request.headers.get("content-length")
    upload_bytes = most if declared is None else min(int(declared), most)
    return context.producer.place(kind, upload_bytes, guessed=declared is None)


# The two schemes only document the headers; `Access` reads them.
async def _admitted(
    request: Request,
    _bearer: Annotated[object, Security(HTTPBearer(auto_error=False, scheme_name="key"))],
    _header: Annotated[
        object,
        Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key header")),
    ],
) -> RequestContext:
    return await admit(request)


# Every router but those of health and pages requires admission, whether its routes read the
# context or not; FastAPI admits each request once.
ADMITTED = [Depends(_admitted)]
Context = Annotated[RequestContext, Depends(_admitted)]
ServiceContext = Annotated[RequestContext, Depends(service_context)]


def checked_id(text: str) -> str:
    """The id of a job or an avatar, safe to name a key; raises `ServiceError` ``not_found``."""
    if not _ID.fullmatch(text):
        raise ServiceError("not_found", f"id = {text[:40]!r}, expected 24 hexadecimal digits")
    return text


async def _job_id(job_id: str) -> str:
    return checked_id(job_id)


async def _avatar_id(avatar_id: str) -> str:
    return checked_id(avatar_id)


JobId = Annotated[str, Depends(_job_id)]
AvatarId = Annotated[str, Depends(_avatar_id)]


async def choose_model(producer: JobProducer, name: str | None) -> ModelView:
    """The model called ``name``, or the default.

    Waits for a worker that starts. Raises `ServiceError` ``no_worker`` when there is none,
    ``invalid_option`` for an unknown name.
    """
    await producer.wait_for_worker()
    models = (await producer.models()).models
    for model in models:
        if name is None or model.name == name:
            return model
    raise unknown_model(name or "", [model.name for model in models])


async def require_avatar(producer: JobProducer, avatar_id: str) -> None:
    """Raise `ServiceError` ``not_found`` unless the client has this avatar."""
    if await producer.avatar(checked_id(avatar_id)) is None:
        raise no_avatar(avatar_id)


def no_avatar(avatar_id: str) -> ServiceError:
    """The error of a request for an avatar that does not exist."""
    return ServiceError("not_found", f"there is no avatar {avatar_id!r}")
