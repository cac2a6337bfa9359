"""Errors by the codes of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FadaError(Exception):
    """``code`` and ``detail`` are the service's, ``status`` is HTTP's (0 on a WebSocket).

    ``retry_after_s``: when to try again, if the service set it.
    """

    code = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = self.code if code is None else code
        self.status = status
        self.retry_after_s = retry_after_s


class BadRequest(FadaError):
    code = "bad_request"


class Unauthorized(FadaError):
    code = "unauthorized"


class Forbidden(FadaError):
    code = "forbidden"


class NotFound(FadaError):
    code = "not_found"


class MethodNotAllowed(FadaError):
    code = "method_not_allowed"


class RequestTimeout(FadaError):
    code = "timeout"


class TakenOver(FadaError):
    """Another connection has resumed the session."""

    code = "taken_over"


class TooLarge(FadaError):
    code = "too_large"


class UnsupportedMedia(FadaError):
    code = "unsupported_media"


class RangeNotSatisfiable(FadaError):
    code = "range_not_satisfiable"


class NoFace(FadaError):
    code = "no_face"


class Occluded(FadaError):
    code = "occluded"


class EmptyAudio(FadaError):
    code = "empty_audio"


class InvalidOption(FadaError):
    code = "invalid_option"


class Busy(FadaError):
    code = "busy"


class InternalError(FadaError):
    code = "internal_error"


class NoWorker(FadaError):
    code = "no_worker"


class ConnectionLost(FadaError):
    """The service could not be reached, or an answer broke off."""

    code = "connection_lost"


_BY_CODE = {kind.code: kind for kind in FadaError.__subclasses__()}


def error_of(problem: Mapping[str, Any], retry_after: str | None = None) -> FadaError:
    """The error of a problem document (RFC 9457) or of an ``error`` message.

    An unknown code gives a plain `FadaError` with that code.
    """
    code = str(problem.get("code", "internal_error"))
    kind = _BY_CODE.get(code, FadaError)
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return kind(
        str(problem.get("detail", code)),
        code=code,
        status=int(problem.get("status", 0)),
        retry_after_s=seconds,
    )
