"""The blocking client."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from fada_client import wire
from fada_client.progress import PING_S, PONG_S
from fada_client.stream import Stream
from fada_client.types import Avatar, Job, Model, MotionFrame, avatar_of, known
from fada_client.wire import Media

T = TypeVar("T")


class _Answer(Iterator[T], Generic[T]):
    """Units of a job's output while it is being made."""

    def __init__(
        self, response: httpx.Response, stack: ExitStack, units: wire.UnitReader[T]
    ) -> None:
        self.job_id = response.headers["x-job-id"]
        self.seed = int(response.headers["x-seed"])
        self.warnings = wire.warnings(response)
        self._stack = stack
        self._units = self._read(response, units)

    def __next__(self) -> T:
        return next(self._units)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._units.close()
        self._stack.close()

    def _read(
        self, response: httpx.Response, units: wire.UnitReader[T]
    ) -> Generator[T, None, None]:
        try:
            for data in _received(response):
                yield from units.feed(data)
        finally:
            self._stack.close()
        units.end()


class Animation(_Answer[bytes]):
    """A video while it is being made: its init segment, then its fragments.

    To stop early, `close` it or leave its ``with`` block; the service then stops as well.
    ``warnings`` name what was repaired in the sound.
    """


class MotionAnimation(_Answer[MotionFrame]):
    """The motion of a video, frame by frame while it is being made; otherwise as `Animation`."""


class Jobs:
    """Videos that are made in the background."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submit(self, portrait: Media | None, audio: Media, **options: Any) -> Job:
        """Queue a video, as `Client.animate` would make it."""
        answer = _posted(
            self._http, portrait, audio, options=options, headers={"Prefer": "respond-async"}
        )
        return known(Job, answer.json())

    def get(self, job_id: str) -> Job:
        return known(Job, _asked(self._http, "GET", f"/jobs/{job_id}").json())

    def video(self, job_id: str, out: str | Path) -> None:
        """Write the MP4 to ``out``; while it is being made, as it is made."""
        self._save(f"/jobs/{job_id}/video", out, {})

    def motion(self, job_id: str, out: str | Path) -> None:
        """Write the motion to ``out``, as a table (``.csv``) or JSON lines; as it is made."""
        self._save(f"/jobs/{job_id}/motion", out, wire.motion_headers(out))

    def cancel(self, job_id: str) -> None:
        _asked(self._http, "DELETE", f"/jobs/{job_id}")

    def _save(self, path: str, out: str | Path, headers: dict[str, str]) -> None:
        with self._http.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                response.read()
                wire.raise_for(response)
            with Path(out).open("wb") as file:
                file.writelines(response.iter_bytes())


class Client:
    """A FADA service at ``url``. Use it as a context manager, or `close` it.

    ``timeout_s``: for connecting, and between two pieces of an answer. Every method raises
    `FadaError`, or a subclass of it.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 60.0) -> None:
        self._url, self._headers = url, wire.headers(api_key)
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=url, headers=self._headers, timeout=timeout_s)
        self.jobs = Jobs(self._http)

    @overload
    def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        output: Literal["motion"],
        **options: Any,
    ) -> MotionAnimation: ...

    @overload
    def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        output: Literal["video"] = "video",
        **options: Any,
    ) -> Animation: ...

    def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        output: Literal["video", "motion"] = "video",
        **options: Any,
    ) -> Animation | MotionAnimation:
        """Make a talking video. ``portrait`` and ``audio``: contents, paths or open files.

        Without ``out``, iterate over the answer for its fragments while they are made; with it,
        the whole video is written there first. ``options`` are those of ``POST /animate``;
        with ``avatar_id`` there is no ``portrait``. With ``output="motion"`` come its frames'
        actions and head pose instead, in a file as a table (``.csv``) or as JSON lines.
        """
        options = {**options, "output": output} if output != "video" else options
        stack = ExitStack()
        try:
            headers = wire.accepted(options, out)
            answer = _streamed(self._http, portrait, audio, options=options, headers=headers)
            response = stack.enter_context(answer)
            if output == "motion":
                motion = MotionAnimation(response, stack, wire.LineReader())
                if out is not None:
                    with motion, Path(out).open("wb") as file:
                        file.writelines(_received(response))
                return motion
            animation = Animation(response, stack, wire.BoxReader())
            if out is not None:
                with Path(out).open("wb") as file:
                    file.writelines(animation)
            return animation
        except BaseException:
            stack.close()
            raise

    def create_avatar(self, portrait: Media, *, model: str | None = None) -> Avatar:
        """Prepare a portrait; later calls name it by its ``avatar_id``."""
        with ExitStack() as stack:
            files = {"portrait": wire.opened(portrait, stack)}
            data = wire.form({"model": model})
            answer = _asked(self._http, "POST", "/avatars", files=files, data=data)
        return avatar_of(answer.json())

    def avatar(self, avatar_id: str) -> Avatar:
        return avatar_of(_asked(self._http, "GET", f"/avatars/{avatar_id}").json())

    def delete_avatar(self, avatar_id: str) -> None:
        _asked(self._http, "DELETE", f"/avatars/{avatar_id}")

    def models(self) -> list[Model]:
        """What the service has loaded, the default first."""
        answer = _asked(self._http, "GET", "/models").json()
        return [known(Model, one) for one in answer["models"]]

    @contextmanager
    def stream(
        self,
        avatar_id: str | None = None,
        *,
        portrait: Media | None = None,
        sample_rate: int = 16_000,
        idle: bool = False,
        **options: Any,
    ) -> Iterator[Stream]:
        """A live session that lasts as long as the block."""
        start = wire.start_message(
            avatar_id, portrait, sample_rate=sample_rate, idle=idle, options=options
        )
        stream = Stream(self._connected, start, self._timeout_s)
        try:
            yield stream
        finally:
            stream.close()

    def _connected(self, timeout_s: float) -> ClientConnection:
        try:
            return connect(
                wire.stream_url(self._url),
                additional_headers=self._headers,
                max_size=None,
                compression=None,
                open_timeout=timeout_s,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
            ).__enter__()
        except (OSError, WebSocketException) as error:
            raise wire.lost(error) from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _received(response: httpx.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes()
    except httpx.HTTPError as error:
        raise wire.lost(error) from error


def _asked(http: httpx.Client, method: str, path: str, **parts: Any) -> httpx.Response:
    try:
        response = http.request(method, path, **parts)
    except httpx.HTTPError as error:
        raise wire.lost(error) from error
    wire.raise_for(response)
    return response


def _posted(
    http: httpx.Client,
    portrait: Media | None,
    audio: Media,
    *,
    options: dict[str, Any],
    headers: dict[str, str],
) -> httpx.Response:
    with ExitStack() as stack:
        parts = wire.animation(portrait, audio, options, stack=stack)
        return _asked(http, "POST", "/animate", headers=headers, **parts)


@contextmanager
def _streamed(
    http: httpx.Client,
    portrait: Media | None,
    audio: Media,
    *,
    options: dict[str, Any],
    headers: dict[str, str],
) -> Iterator[httpx.Response]:
    with ExitStack() as stack:
        parts = wire.animation(portrait, audio, options, stack=stack)
        try:
            answer = http.stream("POST", "/animate", headers=headers, **parts)
            response = stack.enter_context(answer)
            if not response.is_success:
                response.read()
        except httpx.HTTPError as error:
            raise wire.lost(error) from error
        wire.raise_for(response)
        yield response
