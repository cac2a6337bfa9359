"""`GET /`: the studio, a page to try everything in a browser; `GET /verify`: a page that shows a
video's marks; `GET /docs`: the API reference.

None loads anything from other origins. The studio uses only the public API.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_FILES = Path(__file__).resolve().parents[1] / "static"
_static = StaticFiles(directory=_FILES)
_swagger = StaticFiles(packages=[("fastapi_offline", "static")])

# Nothing from other origins is loaded; portraits and videos are blobs that the page creates.
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


@router.api_route("/verify", methods=["GET", "HEAD"])
async def verify() -> Response:
    """The page that shows a video's marks."""
    return FileResponse(_FILES / "verify.html", headers=_HEADERS)


# Swagger UI uses inline styles, and data URLs for its icons.
_DOCS_POLICY = _HEADERS["Content-Security-Policy"].replace(
    "img-src 'self'", "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def documents() -> Response:
    """The API reference, by Swagger UI."""
    headers = {**_HEADERS, "Content-Security-Policy": _DOCS_POLICY}
    return FileResponse(_FILES / "docs.html", headers=headers)


@router.api_route("/static/swagger/{path:path}", methods=["GET", "HEAD"])
async def swagger(request: Request, path: str) -> Response:
    """A file of Swagger UI, from the package that ships it."""
    response = await _swagger.get_response(path, request.scope)
    response.headers.update(_HEADERS)
    return response


@router.api_route("/static/{path:path}", methods=["GET", "HEAD"])
async def static(request: Request, path: str) -> Response:
    """A file of the studio; an unknown one gets the same 404 as any other address."""
    response = await _static.get_response(path, request.scope)
    response.headers.update(_HEADERS)
    return response
