"""What every route needs: the broker and the settings, held by the application.

Knows where they are kept; does not know what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection, Request

from server.access import Access
from server.broker.client import Client
from server.errors import ServiceError
from server.protocol import ModelView, ProblemView
from server.settings import Settings

PROBLEMS: dict[int | str, dict[str, object]] = {
    "4XX": {"model": ProblemView, "description": "application/problem+json"},
    "5XX": {"model": ProblemView, "description": "application/problem+json"},
}


@dataclass(frozen=True)
class Context:
    client: Client
    settings: Settings
    access: Access


def context(request: HTTPConnection) -> Context:
    """The application's, made at its start."""
    return cast(Context, request.app.state.context)


async def admitted(request: Request) -> str:
    """The name of the client; raises what `Access.admit` raises."""
    return await context(request).access.admit(request)


# Every route but health, documents and the page. The schemes only describe the keys to readers.
DOOR = [
    Depends(admitted),
    Security(HTTPBearer(auto_error=False, scheme_name="key")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key header")),
]


async def choose_model(client: Client, name: str | None) -> ModelView:
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
