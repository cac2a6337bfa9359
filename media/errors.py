"""Errors of uploaded files."""

from __future__ import annotations


class MediaError(ValueError):
    """A file that cannot be used; ``code`` is ``unsupported_media``, ``empty_audio`` or
    ``too_large``, as in the service's API."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
