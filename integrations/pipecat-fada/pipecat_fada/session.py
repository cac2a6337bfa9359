"""One live session of the service: messages out in the right order, decoded pictures in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

from fada_client import (
    AsyncClient,
    AsyncStream,
    ConnectionLost,
    Done,
    Fragment,
    InitSegment,
    Interrupted,
)
from fada_client.decode import FragmentDecoder
from fada_client.wire import Media

from pipecat_fada.playout import PlayoutQueue

FaceState = Literal["listening", "thinking", "idle"]

# Sound given to the service ahead of what is shown; the rest waits here, where it is dropped at no
# cost. The service takes up to a minute.
_MAX_AHEAD_S = 4.0
# Pictures of rest that wait longer are dropped: after a stall the avatar goes on in the present.
_MAX_REST_S = 0.4


@dataclass(frozen=True)
class Picture:
    """(H, W, 3) RGB; ``speech``: it belongs to the next sound."""

    rgb: bytes
    speech: bool


class AvatarSession:
    """A live session that goes on in silence; ``pictures`` wait to be shown.

    `run` until the session ends, which raises `fada_client.FadaError`. `wake` after anything new in
    the queue.
    """

    def __init__(
        self,
        stream: AsyncStream,
        queue: PlayoutQueue,
        came: asyncio.Event,
        *,
        stack: AsyncExitStack,
    ) -> None:
        self.pictures: deque[Picture] = deque()
        self.size = (stream.ready.width, stream.ready.height)
        self.fps = stream.ready.fps
        self._stream, self._queue, self._came, self._stack = stream, queue, came, stack
        self._to_send = asyncio.Event()
        self._interrupt_due = False  # and not yet sent
        self._interrupting = False  # until the service confirms, its speech is old
        self._state: FaceState = "idle"
        self._state_due = False
        self._options: dict[str, Any] = {}  # to be changed

    @classmethod
    async def connect(
        cls,
        url: str,
        api_key: str | None,
        *,
        queue: PlayoutQueue,
        came: asyncio.Event,
        avatar_id: str | None,
        portrait: Media | None,
        sample_rate: int,
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> AvatarSession:
        """``came`` is set whenever a picture came.

        Raises `fada_client.FadaError`, also when it takes longer than ``timeout_s``.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout_s):
                    client = await stack.enter_async_context(
                        AsyncClient(url, api_key, timeout_s=timeout_s)
                    )
                    stream = await stack.enter_async_context(
                        client.stream(
                            avatar_id,
                            portrait=portrait,
                            sample_rate=sample_rate,
                            idle=True,
                            **options,
                        )
                    )
            except TimeoutError as error:
                raise ConnectionLost(f"not ready within {timeout_s:g} s") from error
            return cls(stream, queue, came, stack=stack.pop_all())

    async def run(self) -> None:
        """Send and receive. Raises `fada_client.FadaError` when the session ends."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_while_it_lasts())
            tasks.create_task(self._receive())

    async def close(self) -> None:
        """Leave the session; the service frees its place."""
        await self._stack.aclose()

    def wake(self) -> None:
        """There is more to send."""
        self._to_send.set()

    def interrupt(self) -> None:
        """What the service holds is old; so are the pictures of speech that it sends from now on.

        Nothing happens while one is under way: no sound is sent before the service confirms.
        """
        self.pictures = deque(one for one in self.pictures if not one.speech)
        if not self._interrupting:
            self._interrupt_due = self._interrupting = True
            self.wake()

    def set_state(self, state: FaceState) -> None:
        """How the avatar acts while it does not speak."""
        if state != self._state:
            self._state, self._state_due = state, True
            self.wake()

    def update(self, options: Mapping[str, Any]) -> None:
        """Change options of the animation."""
        self._options.update(options)
        self.wake()

    async def _send_while_it_lasts(self) -> None:
        with suppress(ConnectionLost):  # why, `_receive` reads
            await self._send()

    async def _send(self) -> None:
        """One message at a time, so that an interrupt drops what was sent before it alone."""
        max_ahead = round(_MAX_AHEAD_S * self.fps)
        while True:
            if self._interrupt_due:
                self._interrupt_due = False
                await self._stream.interrupt()
            elif self._state_due:
                self._state_due = False
                await self._stream.state(self._state)
            elif self._options:
                options, self._options = self._options, {}
                await self._stream.update(**options)
            elif not self._interrupting and (pcm := self._next_sound(max_ahead)):
                await self._stream.push_audio(pcm)
            else:
                self._to_send.clear()
                await self._to_send.wait()

    def _next_sound(self, max_ahead: int) -> bytes:
        self._queue.add_tail()
        return self._queue.unsent(max_ahead)

    async def _receive(self) -> None:
        decoder: FragmentDecoder | None = None
        async for event in self._stream:
            match event:
                case InitSegment(data=data):
                    decoder = FragmentDecoder(data)
                case Fragment(data=data, kind=kind) if decoder is not None:
                    # In a thread: it takes milliseconds, and the loop paces sound.
                    shown = await asyncio.to_thread(_rgb, decoder, data)
                    self._take(shown, speech=kind == "speech")
                case Interrupted():
                    self._interrupting = False
                    self.wake()
                case Done():
                    break
        raise ConnectionLost("the service ended the session")

    def _take(self, shown: list[bytes], *, speech: bool) -> None:
        if speech and self._interrupting:
            return
        self.pictures += [Picture(rgb, speech) for rgb in shown]
        while len(self.pictures) > _MAX_REST_S * self.fps and not self.pictures[0].speech:
            self.pictures.popleft()
        self._came.set()


def _rgb(decoder: FragmentDecoder, fragment: bytes) -> list[bytes]:
    return [one.to_ndarray(format="rgb24").tobytes() for one in decoder.decode(fragment)]
