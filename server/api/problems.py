"""Errors as ``application/problem+json`` (RFC 9457): the one place that counts and answers them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

from server import metrics
from server.api.protocol import ProblemView
from server.errors import ServiceError

_MEDIA_TYPE = "application/problem+json"
_PROBLEM: dict[str, object] = {
    "content": {_MEDIA_TYPE: {"schema": ProblemView.model_json_schema()}},
    "description": "what is wrong, with a stable `code`",
}
PROBLEMS: dict[int | str, dict[str, object]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}  # for OpenAPI


def problem_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """Count ``error`` and turn it into a response."""
    metrics.error(error.code)
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.problem(), error.kind.status, headers, media_type=_MEDIA_TYPE)


def broker_lost() -> ServiceError:
    """The error of a request that met a broker that does not reply."""
    return ServiceError("no_worker", "the service's queue does not reply; try again in a moment")
