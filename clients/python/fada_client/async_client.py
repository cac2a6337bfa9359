"""The client for asyncio: `fada_client.client`, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from fada_client import wire
from fada_client.async_stream import AsyncStream
from fada_client.progress import PING_S, PONG_S
from fada_client.types import Avatar, Job, Model, MotionFrame, avatar_of, known
from fada_client.wire import Media

T = TypeVar("T")


class _AsyncAnswer(Generic[T]):
    def __init__(
        self, response: httpx.Response, stack: AsyncExitStack, units: wire.UnitReader[T]
    ) -> None:
        self.job_id = response.headers["x-job-id"]
        self.seed = int(response.headers["x-seed"])
        self.warnings = wire.warnings(response)
        self._stack = stack
        self._units = self._read(response, units)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._units

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._stack.aclose()

    async def _read(self, response: httpx.Response, units: wire.UnitReader[T]) -> AsyncIterator[T]:
        try:
            async for data in _received(response):
                for unit in units.feed(data):
                    yield unit
        finally:
            await self._stack.aclose()
        units.end()


class AsyncAnimation(_AsyncAnswer[bytes]):
    """See `Animation`."""


class AsyncMotionAnimation(_AsyncAnswer[MotionFrame]):
    """See `MotionAnimation`."""


class AsyncJobs:
    """See `Jobs`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def submit(self, portrait: Media | None, audio: Media, **options: Any) -> Job:
        with ExitStack() as stack:
            parts = wire.animation(portrait, audio, options, stack=stack)
            headers = {"Prefer": "respond-async"}
            answer = await _asked(self._http, "POST", "/animate", headers=headers, **parts)
        return known(Job, answer.json())

    async def get(self, job_id: str) -> Job:
        return known(Job, (await _asked(self._http, "GET", f"/jobs/{job_id}")).json())

    async def video(self, job_id: str, out: str | Path) -> None:
        await self._save(f"/jobs/{job_id}/video", out, {})

    async def motion(self, job_id: str, out: str | Path) -> None:
        await self._save(f"/jobs/{job_id}/motion", out, wire.motion_headers(out))

    async def cancel(self, job_id: str) -> None:
        await _asked(self._http, "DELETE", f"/jobs/{job_id}")

    async def _save(self, path: str, out: str | Path, headers: dict[str, str]) -> None:
        async with self._http.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                await response.aread()
                wire.raise_for(response)
            await _save(response.aiter_bytes(), out)


class AsyncClient:
    """See `Client`."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 60.0) -> None:
        self._url, self._headers = url, wire.headers(api_key)
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(base_url=url, headers=self._headers, timeout=timeout_s)
        self.jobs = AsyncJobs(self._http)

    @overload
    async def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        output: Literal["motion"],
        **options: Any,
    ) -> AsyncMotionAnimation: ...

    @overload
    async def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        output: Literal["video"] = "video",
        **options: Any,
    ) -> AsyncAnimation: ...

    async def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        output: Literal["video", "motion"] = "video",
        **options: Any,
    ) -> AsyncAnimation | AsyncMotionAnimation:
        options = {**options, "output": output} if output != "video" else options
        stack = AsyncExitStack()
        try:
            headers = wire.accepted(options, out)
            answer = self._streamed(portrait, audio, options=options, headers=headers)
            response = await stack.enter_async_context(answer)
            if output == "motion":
                motion = AsyncMotionAnimation(response, stack, wire.LineReader())
                if out is not None:
                    async with motion:
                        await _save(_received(response), out)
                return motion
            animation = AsyncAnimation(response, stack, wire.BoxReader())
            if out is not None:
                await _save(aiter(animation), out)
            return animation
        except BaseException:
            await stack.aclose()
            raise

    @asynccontextmanager
    async def _streamed(
        self,
        portrait: Media | None,
        audio: Media,
        *,
        options: dict[str, Any],
        headers: dict[str, str],
    ) -> AsyncIterator[httpx.Response]:
        async with AsyncExitStack() as stack:
            files = stack.enter_context(ExitStack())
            parts = wire.animation(portrait, audio, options, stack=files)
            try:
                response = await stack.enter_async_context(
                    self._http.stream("POST", "/animate", headers=headers, **parts)
                )
                if not response.is_success:
                    await response.aread()
            except httpx.HTTPError as error:
                raise wire.lost(error) from error
            wire.raise_for(response)
            yield response

    async def create_avatar(self, portrait: Media, *, model: str | None = None) -> Avatar:
        with ExitStack() as stack:
            files = {"portrait": wire.opened(portrait, stack)}
            data = wire.form({"model": model})
            answer = await _asked(self._http, "POST", "/avatars", files=files, data=data)
        return avatar_of(answer.json())

    async def avatar(self, avatar_id: str) -> Avatar:
        return avatar_of((await _asked(self._http, "GET", f"/avatars/{avatar_id}")).json())

    async def delete_avatar(self, avatar_id: str) -> None:
        await _asked(self._http, "DELETE", f"/avatars/{avatar_id}")

    async def models(self) -> list[Model]:
        answer = (await _asked(self._http, "GET", "/models")).json()
        return [known(Model, one) for one in answer["models"]]

    @asynccontextmanager
    async def stream(
        self,
        avatar_id: str | None = None,
        *,
        portrait: Media | None = None,
        sample_rate: int = 16_000,
        idle: bool = False,
        **options: Any,
    ) -> AsyncIterator[AsyncStream]:
        start = wire.start_message(
            avatar_id, portrait, sample_rate=sample_rate, idle=idle, options=options
        )
        stream = await AsyncStream.begin(self._connected, start, self._timeout_s)
        try:
            yield stream
        finally:
            await stream.close()

    async def _connected(self, timeout_s: float) -> ClientConnection:
        try:
            return await connect(
                wire.stream_url(self._url),
                additional_headers=self._headers,
                max_size=None,
                compression=None,
                open_timeout=timeout_s,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
            )
        except (OSError, WebSocketException) as error:
            raise wire.lost(error) from error

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def _received(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for data in response.aiter_bytes():
            yield data
    except httpx.HTTPError as error:
        raise wire.lost(error) from error


async def _save(pieces: AsyncIterator[bytes], out: str | Path) -> None:
    with Path(out).open("wb") as file:
        async for data in pieces:
            file.write(data)


async def _asked(http: httpx.AsyncClient, method: str, path: str, **parts: Any) -> httpx.Response:
    try:
        response = await http.request(method, path, **parts)
    except httpx.HTTPError as error:
        raise wire.lost(error) from error
    wire.raise_for(response)
    return response
