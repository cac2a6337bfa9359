"""Multipart forms: files as bytes, fields as strings.

Portraits are checked by their magic bytes here; only the worker can decide whether one decodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server.errors import ServiceError

_MAX_PARTS = 20
_MAX_FIELD_BYTES = 4096
_HEIF = {b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"}
_MAX_FTYP = 256
_CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")


@dataclass(frozen=True)
class Upload:
    """A form's files and unparsed fields, by part name."""

    files: Mapping[str, bytes]
    fields: Mapping[str, str]


async def read_upload(request: Request, files: Collection[str]) -> Upload:
    """Read a form whose file parts are among ``files``, each part at most once.

    Raises `ServiceError` ``bad_request`` for any other body.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        given = request.headers.get("content-type", "none")[:100]
        raise ServiceError("bad_request", f"Content-Type = {given!r}, expected multipart/form-data")
    charset = request.headers.get("content-type", "").lower().partition("charset=")[2]
    if charset and charset.strip(' "').partition(";")[0].strip(' "') not in _CHARSETS:
        raise ServiceError(
            "bad_request", f"charset = {charset[:20]!r}, expected one of {_CHARSETS}"
        )
    blobs: dict[str, bytes] = {}
    fields: dict[str, str] = {}
    try:
        async with request.form(
            max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            for name, value in form.multi_items():
                _check_part(name, value, files=files, seen=[*blobs, *fields])
                if isinstance(value, UploadFile):
                    blobs[name] = await value.read()
                else:
                    fields[name] = value
    except (HTTPException, FormParserError, UnicodeError, LookupError) as error:
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        raise ServiceError("bad_request", f"the form cannot be read: {detail}") from error
    return Upload(blobs, fields)


def _check_part(
    name: str, value: UploadFile | str, *, files: Collection[str], seen: Collection[str]
) -> None:
    if name in seen:
        raise ServiceError("bad_request", f"the form has more than one part {name!r}")
    if isinstance(value, UploadFile) and name not in files:
        raise ServiceError(
            "bad_request", f"file part = {name!r}, expected one of {', '.join(files)}"
        )
    if isinstance(value, str) and name in files:
        raise ServiceError("bad_request", f"{name!r} is a field, expected a file with a file name")


def check_portrait(blob: bytes, max_bytes: int) -> None:
    """Raises `ServiceError` ``too_large`` or ``unsupported_media``."""
    if len(blob) > max_bytes:
        raise ServiceError(
            "too_large", f"the portrait has {len(blob)} bytes, expected at most {max_bytes}"
        )
    jpeg, png = blob[:3] == b"\xff\xd8\xff", blob[:8] == b"\x89PNG\r\n\x1a\n"
    webp = blob[:4] == b"RIFF" and blob[8:12] == b"WEBP"
    heif = blob[4:8] == b"ftyp" and not _HEIF.isdisjoint(_brands(blob))
    if not (jpeg or png or webp or heif):
        raise ServiceError(
            "unsupported_media", "the portrait is not a JPEG, PNG, WebP, AVIF or HEIC picture"
        )


def _brands(blob: bytes) -> set[bytes]:
    """Those of an ISO base media file's first box."""
    size = min(int.from_bytes(blob[:4], "big"), _MAX_FTYP)
    return {blob[8:12], *(blob[at : at + 4] for at in range(16, size, 4))}
