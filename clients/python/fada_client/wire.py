"""Requests and answers without I/O: what `Client` and `AsyncClient` share."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import httpx

from fada_client.errors import ConnectionLost, FadaError, error_of
from fada_client.types import (
    Done,
    Event,
    Fragment,
    InitSegment,
    Interrupted,
    Motion,
    MotionFrame,
    Ready,
    known,
)

T = TypeVar("T", covariant=True)

Media = bytes | str | Path | IO[bytes]  # contents, a path, or a file that is open


def opened(media: Media, stack: ExitStack) -> tuple[str, bytes | IO[bytes]]:
    """A file part: name and contents. Files opened here are closed with ``stack``."""
    if isinstance(media, bytes):
        return "upload", media
    if isinstance(media, str | Path):
        path = Path(media)
        return path.name, stack.enter_context(path.open("rb"))
    return "upload", media


def contents(media: Media) -> bytes:
    with ExitStack() as stack:
        _, data = opened(media, stack)
        return data if isinstance(data, bytes) else data.read()


def form(options: dict[str, Any]) -> dict[str, str]:
    """Form fields; the service chooses options that are ``None``."""
    return {name: str(value) for name, value in options.items() if value is not None}


def animation(
    portrait: Media | None, audio: Media, options: dict[str, Any], *, stack: ExitStack
) -> dict[str, Any]:
    """The form of ``POST /animate``, as arguments for httpx."""
    files = {"audio": opened(audio, stack)}
    if portrait is not None:
        files["portrait"] = opened(portrait, stack)
    return {"files": files, "data": form(options)}


def headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def accepted(options: dict[str, Any], out: str | Path | None) -> dict[str, str]:
    """The header that asks for motion as ``out`` is to hold it: a table in a ``.csv``."""
    if options.get("output") != "motion" or out is None:
        return {}
    return motion_headers(out)


def motion_headers(out: str | Path) -> dict[str, str]:
    table = Path(out).suffix.lower() == ".csv"
    return {"Accept": "text/csv" if table else "application/x-ndjson"}


def stream_url(url: str) -> str:
    return url.rstrip("/").replace("http", "ws", 1) + "/stream"


def warnings(response: httpx.Response) -> tuple[str, ...]:
    """What the service repaired in the sound."""
    header = response.headers.get("x-warning")
    return (header,) if header else ()


def raise_for(response: httpx.Response) -> None:
    """Raises the error of a failed response whose body was read."""
    if response.is_success:
        return
    try:
        document = response.json()
    except ValueError:
        document = {"detail": response.text[:200], "status": response.status_code}
    raise error_of(document, response.headers.get("retry-after"))


class UnitReader(Protocol[T]):
    """Splits what is received in pieces of any size."""

    def feed(self, data: bytes) -> Iterator[T]: ...

    def end(self) -> None:
        """Raises `ConnectionLost` when the last unit is incomplete."""
        ...


class BoxReader:
    """Splits a fragmented MP4, received in pieces of any size, into init segment and fragments."""

    def __init__(self) -> None:
        self._rest = b""
        self._unit = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Complete units: up to ``moov``, then each up to its ``mdat``."""
        self._rest += data
        while len(self._rest) >= 8:
            size = int.from_bytes(self._rest[:4], "big")
            if size < 8:
                raise ConnectionLost(f"box size = {size}, expected at least 8")
            if len(self._rest) < size:
                return
            box, self._rest = self._rest[:size], self._rest[size:]
            self._unit += box
            if box[4:8] in (b"moov", b"mdat"):
                yield self._unit
                self._unit = b""

    def end(self) -> None:
        """Raises `ConnectionLost` when the last unit is incomplete."""
        if self._rest or self._unit:
            raise ConnectionLost("the video broke off within a fragment")


class LineReader:
    """Turns JSON lines, received in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._rest = b""
        self._names: dict[str, Any] | None = None

    def feed(self, data: bytes) -> Iterator[MotionFrame]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            fields = json.loads(line)
            if self._names is None:
                self._names = fields
            else:
                yield motion_frame(self._names, fields["t"], fields["actions"], pose=fields["pose"])

    def end(self) -> None:
        """Raises `ConnectionLost` when the last line is incomplete."""
        if self._rest:
            raise ConnectionLost("the motion broke off within a line")


def motion_frame(
    names: Mapping[str, Any], t: float, actions: Sequence[float], *, pose: Sequence[float]
) -> MotionFrame:
    """``names`` has those of ``actions`` and ``pose``."""
    return MotionFrame(
        t,
        dict(zip(names["actions"], actions, strict=True)),
        dict(zip(names["pose"], pose, strict=True)),
    )


def motion(names: Mapping[str, Any], fields: Mapping[str, Any]) -> Motion:
    """The event of a ``motion`` message; ``names`` as in ``ready``, with its ``fps``."""
    frames = tuple(
        motion_frame(names, round(fields["start_s"] + k / names["fps"], 3), actions, pose=pose)
        for k, (actions, pose) in enumerate(zip(fields["actions"], fields["pose"], strict=True))
    )
    return known(Motion, {**fields, "frames": frames})


def start_message(
    avatar_id: str | None,
    portrait: Media | None,
    *,
    sample_rate: int,
    idle: bool,
    options: dict[str, Any],
) -> str:
    fields = {name: value for name, value in options.items() if value is not None}
    if avatar_id is not None:
        fields["avatar_id"] = avatar_id
    if portrait is not None:
        fields["portrait"] = base64.b64encode(contents(portrait)).decode()
    return json.dumps({"type": "start", "sample_rate": sample_rate, "idle": idle, **fields})


def message(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **{k: v for k, v in fields.items() if v is not None}})


class EventReader:
    """Turns WebSocket messages into events; a fragment's text and bytes become one."""

    def __init__(self) -> None:
        self._announced: dict[str, Any] | None = None
        self._names: dict[str, Any] = {}
        self._begun = False

    def resume(self, *, begun: bool) -> None:
        """Messages come from a new connection; ``begun``: without an init segment."""
        self._announced, self._begun = None, begun

    def read(self, received: str | bytes) -> Event | None:
        """``None`` for a message whose data comes next. Raises the service's errors."""
        if isinstance(received, bytes):
            if not self._begun:
                self._begun = True
                return InitSegment(received)
            if self._announced is None:
                raise ConnectionLost("received bytes without a fragment message before them")
            fragment = known(Fragment, {**self._announced, "data": received})
            self._announced = None
            return fragment
        fields = json.loads(received)
        kind = fields.pop("type", None)
        if kind == "error":
            raise error_of(fields)
        if kind == "fragment":
            self._announced = fields
            return None
        if kind == "motion":
            return motion(self._names, fields)
        if kind == "ready":
            self._names = fields
        events: dict[str, type[Any]] = {"ready": Ready, "interrupted": Interrupted, "done": Done}
        return known(events[kind], fields) if kind in events else None


def lost(error: Exception) -> FadaError:
    return ConnectionLost(f"{type(error).__name__}: {error}")
