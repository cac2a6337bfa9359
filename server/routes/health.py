"""Health and what is loaded. Knows liveness from readiness; nothing of jobs."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.errors import ServiceError
from server.protocol import ModelList
from server.routes.context import DOOR, PROBLEMS, context

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


@router.get("/models", dependencies=DOOR)
async def models(request: Request) -> ModelList:
    """The students that the live workers have loaded."""
    return await context(request).client.models()
