"""The API application: its routes and middleware, and a problem document for every error.

It loads neither torch nor a model nor a media library, so it starts in a second.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server import metrics
from server.api import animate, avatars, health, jobs, pages, stream, verify, webrtc
from server.api.access import Access
from server.api.dependencies import RequestContext
from server.api.limits import BodyLimit
from server.api.origins import OriginCheck
from server.api.problems import broker_lost, problem_response
from server.api.telemetry import Telemetry
from server.broker.liveness import register_reader
from server.broker.producer import JobProducer
from server.broker.redis import BROKER_LOST, connect, sweeping
from server.broker.reservations import configured_limits
from server.errors import KINDS, ServiceError
from server.settings import CLIENT_SHARE, Settings

log = logging.getLogger("fada.api")

# Headers that pages of other origins may send, and may read.
_REQUEST_HEADERS = ["Authorization", "X-API-Key", "Prefer", "X-Request-Id"]
_RESPONSE_HEADERS = [
    "Location", "Preference-Applied", "Retry-After", "X-Content-Source", "X-Job-Id", "X-Request-Id",
    "X-Seed", "X-Warning",
]  # fmt: skip


def create_app(settings: Settings, url: str, *, loopback: bool = False) -> FastAPI:
    """The application; it connects to the broker at ``url`` when it starts.

    ``loopback``: it listens where only this machine reaches it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            connect(url, settings.data) as connection,
            metrics.reporting(connection, "api"),
            register_reader(connection) as reader,
        ):
            share = _client_share(settings, loopback=loopback)
            producer = JobProducer(
                connection,
                settings.max_jobs,
                settings.job_ttl_s,
                reader=reader,
                limits=await configured_limits(
                    connection, settings.redis_bytes, settings.data_bytes, share=share
                ),
            )
            access = Access(connection, settings, share=share)
            app.state.context = RequestContext(producer, settings, access)
            async with (
                sweeping(connection),
                webrtc.live_calls(loopback=loopback) as app.state.live_calls,
            ):
                yield

    app = _Application(
        keyed=bool(settings.api_keys),
        title="FADA",
        summary="A portrait and speech in, a talking video out while it is being made.",
        lifespan=lifespan,
        docs_url=None,  # `server.api.pages` has one that loads nothing from other origins
        redoc_url=None,
    )
    app.add_middleware(
        OriginCheck, origins=settings.cors_origins, hosts=settings.hosts, loopback=loopback
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )
    app.add_middleware(Telemetry)
    for module in (animate, avatars, jobs, stream, webrtc, verify, health, pages):
        app.include_router(module.router)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    for lost in BROKER_LOST:
        app.add_exception_handler(lost, _broker_lost)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _bug)
    return app


def _client_share(settings: Settings, *, loopback: bool) -> float:
    """One person's own service has nobody to leave room for."""
    if settings.client_share is not None:
        return settings.client_share
    alone = loopback and not (settings.api_keys or settings.trusted_proxies)
    return 1.0 if alone else CLIENT_SHARE


class _Application(FastAPI):
    """Its OpenAPI document asks for a key only where the service does."""

    def __init__(self, *, keyed: bool, **options: Any) -> None:
        super().__init__(**options)
        self._keyed = keyed

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        if not self._keyed:
            document.get("components", {}).pop("securitySchemes", None)
            for calls in document["paths"].values():
                for call in calls.values():
                    call.pop("security", None)
        return document


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    return problem_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors that the framework raises: unknown addresses, wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    by_status = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    code = by_status.get(error.status_code, "bad_request")
    allowed = (error.headers or {}).get("Allow")
    title = KINDS[code].title
    detail = title if allowed is None else f"{title}, expected {allowed}"  # never echo the method
    return problem_response(ServiceError(code, detail), error.headers)


async def _broker_lost(request: Request, error: Exception) -> Response:
    log.error("the broker does not reply: %s", error)
    return problem_response(broker_lost())


async def _client_gone(request: Request, error: Exception) -> Response:
    return problem_response(ServiceError("bad_request", "the client disconnected while sending"))


async def _bug(request: Request, error: Exception) -> Response:
    return problem_response(ServiceError("internal_error", "the request failed"))
