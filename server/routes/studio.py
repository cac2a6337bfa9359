"""`GET /`: the studio, one page to try everything in a browser.

Knows: where the page's files lie and how browsers may keep and run them. Everything that the page
does, it does through the public API.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_FILES = Path(__file__).resolve().parents[1] / "static"
_static = StaticFiles(directory=_FILES)

# Nothing from elsewhere is ever loaded; portraits and videos are blobs of the page's own making.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> Response:
    """The studio page."""
    return FileResponse(_FILES / "index.html", headers=_HEADERS)


@router.api_route("/static/{path:path}", methods=["GET", "HEAD"])
async def static(request: Request, path: str) -> Response:
    """A file of the page. Unknown ones are the 404 of every other address."""
    response = await _static.get_response(path, request.scope)
    response.headers.update(_HEADERS)
    return response
