"""Every error that a client can meet: one table from the stable code to status and title."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a code means to a client; ``retry_after_s`` goes out as ``Retry-After``."""

    status: int
    title: str
    retry_after_s: int | None = None


KINDS: dict[str, Kind] = {
    "bad_request": Kind(400, "The request is malformed"),
    "unauthorized": Kind(401, "The API key is missing or wrong"),
    "forbidden": Kind(403, "The request comes from where it may not"),
    "not_found": Kind(404, "There is nothing here"),
    "method_not_allowed": Kind(405, "This address does not take that method"),
    "timeout": Kind(408, "The request did not come in time"),
    "too_large": Kind(413, "The input is too large"),
    "unsupported_media": Kind(415, "The input is no picture or sound that can be read"),
    "no_face": Kind(422, "There is no face in the picture"),
    "empty_audio": Kind(422, "There is no sound in the audio"),
    "invalid_option": Kind(422, "An option is not allowed"),
    "busy": Kind(429, "All places are taken", retry_after_s=5),
    "internal_error": Kind(500, "The server failed"),
    "no_worker": Kind(503, "No worker is ready", retry_after_s=5),
}


class SetupError(Exception):
    """What was asked for at the start cannot be had: nothing that a client could mend."""


class ServiceError(Exception):
    """An error with a code of `KINDS`; ``detail`` says what was given and what is allowed.

    ``retry_after_s`` is the kind's own unless the raiser knows better.
    """

    def __init__(self, code: str, detail: str, retry_after_s: int | None = None) -> None:
        if code not in KINDS:
            raise ValueError(f"unknown error code {code!r}, must be one of {sorted(KINDS)}")
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = self.kind.retry_after_s if retry_after_s is None else retry_after_s

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
