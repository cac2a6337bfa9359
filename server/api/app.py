"""The API process: routes, limits and the translation of every error.

Never loads torch, the model or a media library, so it starts in a second; whatever touches
pictures, sound or networks is a worker's.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from server import metrics
from server.api import animate, avatars, health, jobs, stream, studio
from server.api.access import Access
from server.api.context import RequestContext
from server.api.doors import Doors
from server.api.limits import BodyLimit
from server.api.observe import Observe
from server.broker.liveness import register_reader
from server.broker.producer import JobProducer
from server.broker.redis import BROKER_LOST, connect
from server.errors import KINDS, ServiceError
from server.settings import Settings

log = logging.getLogger("fada.api")

# What a page of another origin may send, and may read beside the body.
_CLIENT_HEADERS = ["Authorization", "X-API-Key", "Prefer", "X-Request-Id"]
_OWN_HEADERS = [
    "Location", "Preference-Applied", "Retry-After", "X-Job-Id", "X-Request-Id", "X-Seed",
]  # fmt: skip


def create_app(settings: Settings, url: str, *, loopback: bool = False) -> FastAPI:
    """The application over the broker at ``url``, which is opened when it starts.

    ``loopback``: it listens where only this machine reaches it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            connect(url) as connection,
            metrics.reporting(connection, "api"),
            register_reader(connection) as reader,
        ):
            client = JobProducer(connection, settings.max_jobs, settings.job_ttl_s, reader=reader)
            app.state.context = RequestContext(client, settings, Access(connection, settings))
            yield

    app = FastAPI(
        title="FADA",
        summary="A portrait and speech in, a talking video out while it is being made.",
        lifespan=lifespan,
        docs_url=None,  # `server.api.studio` has a page that loads nothing from elsewhere
        redoc_url=None,
    )
    app.add_middleware(
        Doors, origins=settings.cors_origins, hosts=settings.hosts, loopback=loopback
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_CLIENT_HEADERS,
            expose_headers=_OWN_HEADERS,
        )
    app.add_middleware(Observe)
    for module in (animate, avatars, jobs, stream, health, studio):
        app.include_router(module.router)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    for lost in BROKER_LOST:
        app.add_exception_handler(lost, _broker_lost)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _bug)
    return app


def _problem(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    metrics.error(error.code)
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        error.problem(), error.kind.status, headers, media_type="application/problem+json"
    )


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    return _problem(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown addresses, wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    by_status = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    code = by_status.get(error.status_code, "bad_request")
    allowed = (error.headers or {}).get("Allow")
    detail = KINDS[code].title if allowed is None else f"this address takes {allowed}"
    return _problem(ServiceError(code, detail), error.headers)


async def _broker_lost(request: Request, error: Exception) -> Response:
    log.error("the broker does not answer: %s", error)
    return _problem(ServiceError("no_worker", "the service's queue does not answer"))


async def _client_gone(request: Request, error: Exception) -> Response:
    return _problem(ServiceError("bad_request", "the client hung up while sending"))


async def _bug(request: Request, error: Exception) -> Response:
    return _problem(ServiceError("internal_error", "the request could not be answered"))
