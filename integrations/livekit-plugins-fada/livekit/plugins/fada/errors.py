from __future__ import annotations

from fada_client import FadaError


class FadaException(Exception):
    """The avatar cannot start or go on. ``code`` is the service's, or ``bridge`` or ``config``."""

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail

    @classmethod
    def of(cls, error: FadaError) -> FadaException:
        return cls(error.detail, code=error.code)
