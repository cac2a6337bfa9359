"""The errors that clients can get: one table from stable code to HTTP status and title."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """HTTP status and title of a code; ``retry_after_s`` is sent as ``Retry-After``."""

    status: int
    title: str
    retry_after_s: int | None = None


KINDS: dict[str, Kind] = {
    "bad_request": Kind(400, "The request is malformed"),
    "unauthorized": Kind(401, "The API key is missing or wrong"),
    "forbidden": Kind(403, "The request's host or origin is not allowed"),
    "not_found": Kind(404, "There is no such resource"),
    "method_not_allowed": Kind(405, "The method is not allowed"),
    "timeout": Kind(408, "The request took too long"),
    "taken_over": Kind(409, "Another connection has the session"),
    "too_large": Kind(413, "The input is too large"),
    "unsupported_media": Kind(415, "The input is not a readable picture or sound"),
    "range_not_satisfiable": Kind(416, "The range lies outside of the video"),
    "no_face": Kind(422, "There is no face in the picture"),
    "occluded": Kind(422, "The mouth in the picture is covered"),
    "empty_audio": Kind(422, "There is no sound in the audio"),
    "invalid_option": Kind(422, "An option is not allowed"),
    "busy": Kind(429, "There is no room now", retry_after_s=5),
    "internal_error": Kind(500, "The server failed"),
    "no_worker": Kind(503, "No worker is ready", retry_after_s=5),
}


class SetupError(Exception):
    """The service or a command cannot start as configured."""


class ServiceError(Exception):
    """An error for the client: a code of `KINDS` and what was wrong in ``detail``.

    ``retry_after_s`` overrides the kind's. Raises ``ValueError`` for an unknown code.
    """

    def __init__(self, code: str, detail: str, retry_after_s: int | None = None) -> None:
        if code not in KINDS:
            raise ValueError(f"code = {code!r}, expected one of {sorted(KINDS)}")
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = self.kind.retry_after_s if retry_after_s is None else retry_after_s

    @classmethod
    def published(cls, code: str, detail: str) -> ServiceError:
        """The error that a worker published; a newer worker's codes may be unknown here."""
        if code in KINDS:
            return cls(code, detail)
        return cls("internal_error", f"{code}: {detail}")

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def problem(self) -> dict[str, str | int]:
        """The ``application/problem+json`` document."""
        return {
            "type": f"urn:fada:error:{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "code": self.code,
        }
