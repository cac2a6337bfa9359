"""Health, metrics and the loaded models."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import PlainTextResponse, Response

from server import metrics
from server.api.dependencies import ADMITTED, Context, ServiceContext
from server.api.problems import PROBLEMS
from server.api.protocol import ModelList
from server.broker.producer import no_worker

router = APIRouter(tags=["service"], responses=PROBLEMS)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The API process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(context: ServiceContext) -> dict[str, str]:
    """A worker is ready for jobs; ``detail``: what workers still prepare, such as an engine."""
    if not (await context.producer.models()).models:
        raise no_worker(starting=await context.producer.starting())
    detail = await context.producer.preparations()
    return {"status": "ready", **({"detail": "; ".join(detail)} if detail else {})}


@router.get("/metrics", dependencies=ADMITTED, response_class=PlainTextResponse)
async def read_metrics(context: Context) -> Response:
    """The metrics of every process, for Prometheus."""
    text = await metrics.render(context.producer.connection, metrics.process_name("api"))
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/models", dependencies=ADMITTED)
async def models(context: Context) -> ModelList:
    """The models that live workers have loaded."""
    return await context.producer.models()
