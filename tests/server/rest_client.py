"""Requests and assertions shared by the tests of the REST contract."""

from __future__ import annotations

from typing import Any

import httpx

from tests.server.media_files import picture, sound


def animate(
    client: httpx.Client,
    *,
    portrait: Any = None,
    audio: Any = None,
    headers: dict[str, str] | None = None,
    **fields: str,
) -> httpx.Response:
    files = {
        "portrait": ("p.png", picture() if portrait is None else portrait),
        "audio": ("a.flac", sound(0.4) if audio is None else audio),
    }
    fields.setdefault("size", "128")
    return client.post("/animate", files=files, data=fields, headers=headers)


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a well-formed problem document."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert {"type", "title", "status", "detail", "code"} <= set(document)
    assert document["status"] == response.status_code
    return response.status_code, document["code"]
