"""Health, figures and what is loaded."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import PlainTextResponse, Response

from server import metrics
from server.api.context import DOOR, PROBLEMS, context
from server.api.protocol import ModelList
from server.errors import ServiceError

router = APIRouter(tags=["service"], responses=PROBLEMS)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """A worker is ready to take jobs."""
    if not (await context(request).client.models()).models:
        raise ServiceError("no_worker", "no worker is connected yet; try again in a moment")
    return {"status": "ready"}


@router.get("/metrics", dependencies=DOOR, response_class=PlainTextResponse)
async def figures(request: Request) -> Response:
    """The figures of all processes, for Prometheus."""
    connection = context(request).client.connection
    text = await metrics.render(connection, metrics.process_name("api"))
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/models", dependencies=DOOR)
async def models(request: Request) -> ModelList:
    """The students that the live workers have loaded."""
    return await context(request).client.models()
