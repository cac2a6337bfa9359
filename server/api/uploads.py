"""Multipart forms: files are passed on as they arrive, fields are strings.

Portraits are checked by their magic bytes here; only the worker can decide whether one decodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from server.errors import ServiceError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS = 20
_MAX_FIELD_BYTES = 4096
_MAX_HEADER_BYTES = 4096  # of a part
_HEAD_BYTES = 512  # of a file: enough to tell its format
_HEIF = {b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"}
_MAX_FTYP = 256
_CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1")

Write = Callable[[str, bytes], Awaitable[None]]


@dataclass
class UploadedFile:
    """A file's first bytes and its size."""

    head: bytes = b""
    size: int = 0

    def add(self, data: bytes) -> None:
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
        self.size += len(data)


@dataclass(frozen=True)
class Upload:
    """A form's files and unparsed fields, by part name."""

    files: Mapping[str, UploadedFile]
    fields: Mapping[str, str]


async def read_upload(request: Request, files: Collection[str], write: Write) -> Upload:
    """Read a form whose file parts are among ``files``, each part at most once.

    ``write`` takes the name of a file part and its next bytes. Raises `ServiceError`
    ``bad_request`` for any other body.
    """
    form = _Form(files)
    parser = MultipartParser(_boundary(request), form.callbacks())
    try:
        async for chunk in request.stream():
            parser.write(chunk)
            for name, data in form.taken():
                await write(name, data)
        parser.finalize()
    except (FormParserError, UnicodeError) as error:
        raise ServiceError("bad_request", f"the form cannot be read: {error}") from error
    if not form.complete:
        raise ServiceError("bad_request", "the form cannot be read: it has no last boundary")
    return Upload(form.files, form.fields)


def _boundary(request: Request) -> bytes:
    given = request.headers.get("content-type", "")
    kind, options = parse_options_header(given)
    if kind != b"multipart/form-data":
        raise ServiceError(
            "bad_request",
            f"Content-Type = {(given or 'none')[:100]!r}, expected multipart/form-data",
        )
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        raise ServiceError(
            "bad_request", f"charset = {charset[:20]!r}, expected one of {_CHARSETS}"
        )
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise ServiceError("bad_request", "the form cannot be read: Content-Type has no boundary")
    return boundary


@dataclass
class _Form:
    """Collects what the parser finds; bytes of files stay until they are `taken`."""

    allowed: Collection[str]
    files: dict[str, UploadedFile] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    _taken: list[tuple[str, bytes]] = field(default_factory=list)
    _header: bytes = b""  # the name of the header that is being read
    _value: bytes = b""
    _disposition: bytes = b""
    _name: str = ""
    _is_file: bool = False
    _field: bytes = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def taken(self) -> list[tuple[str, bytes]]:
        """The files' bytes since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def _on_part_begin(self) -> None:
        self._header = self._value = self._disposition = self._field = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = _joined(self._header, data[start:end], _MAX_HEADER_BYTES, "a header")

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _joined(self._value, data[start:end], _MAX_HEADER_BYTES, "a header")

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise ServiceError("bad_request", "the form cannot be read: a part has no name")
        self._name, self._is_file = options[b"name"].decode(), b"filename" in options
        self._check_part()
        if self._is_file:
            self.files[self._name] = UploadedFile()

    def _check_part(self) -> None:
        name = self._name
        if name in self.files or name in self.fields:
            raise ServiceError("bad_request", f"the form has more than one part {name[:100]!r}")
        if self._is_file and name not in self.allowed:
            expected = ", ".join(self.allowed)
            raise ServiceError(
                "bad_request", f"file part = {name[:100]!r}, expected one of {expected}"
            )
        if not self._is_file and name in self.allowed:
            raise ServiceError(
                "bad_request", f"{name!r} is a field, expected a file with a file name"
            )
        if len(self.files) + len(self.fields) == _MAX_PARTS:
            raise ServiceError("bad_request", f"expected at most {_MAX_PARTS} parts in the form")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._is_file:
            self.files[self._name].add(piece)
            self._taken.append((self._name, piece))
        else:
            self._field = _joined(self._field, piece, _MAX_FIELD_BYTES, repr(self._name[:100]))

    def _on_part_end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._field.decode()

    def _on_end(self) -> None:
        self.complete = True


def _joined(before: bytes, data: bytes, most: int, what: str) -> bytes:
    if len(before) + len(data) > most:
        raise ServiceError("bad_request", f"{what} of the form has more than {most} bytes")
    return before + data


def check_portrait(head: bytes, size: int, max_bytes: int) -> None:
    """Check a portrait of ``size`` bytes by its first ones.

    Raises `ServiceError` ``too_large`` or ``unsupported_media``.
    """
    if size > max_bytes:
        raise ServiceError(
            "too_large", f"the portrait has {size} bytes, expected at most {max_bytes}"
        )
    jpeg, png = head[:3] == b"\xff\xd8\xff", head[:8] == b"\x89PNG\r\n\x1a\n"
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    heif = head[4:8] == b"ftyp" and not _HEIF.isdisjoint(_brands(head))
    if not (jpeg or png or webp or heif):
        raise ServiceError(
            "unsupported_media", "the portrait is not a JPEG, PNG, WebP, AVIF or HEIC picture"
        )


def _brands(head: bytes) -> set[bytes]:
    """Those of an ISO base media file's first box."""
    size = min(int.from_bytes(head[:4], "big"), _MAX_FTYP)
    return {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
