"""Sessions of `fada.local`: videos and live streams that are iterated over while they are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import numpy as np
from fada_client import (
    Done,
    Event,
    Fragment,
    InitSegment,
    Interrupted,
    Motion,
    MotionFrame,
    Ready,
    wire,
)
from fada_client.errors import InvalidOption, error_of
from fada_client.types import known
from numpy.typing import NDArray

from media.fmp4 import SAMPLE_RATE
from model.types import FPS, Floats
from server.api.protocol import parse_options, parse_state
from server.broker.messages import LIVE_OPTIONS
from server.errors import ServiceError, SetupError
from server.motion import MOTION_READY, motion_message
from server.tasks import cancel_and_wait
from server.worker.session import SpeechInterrupted, VideoFragment, VideoSession, VideoStarted

T = TypeVar("T")
Kind = Literal["speech", "idle"]


@dataclass(frozen=True)
class RawFrame:
    """A frame and its sound, not encoded.

    ``picture``: (H, W, 3) uint8 RGB, 25 a second; ``sound``: (N,) float32 of ±1, mono at 48 kHz.
    """

    index: int
    start_s: float
    kind: Kind
    picture: NDArray[np.uint8]
    sound: Floats


class LocalAnimation(Iterator[Any]):
    """A video while it is being made: bytes as in `fada_client.Animation`, `RawFrame`s, or
    `fada_client.MotionFrame`s.

    ``total_s``: length of the sound, where its container states it; ``began_s``: when the student
    began, of ``time.monotonic``; ``warnings`` name what was repaired in the sound.
    """

    def __init__(
        self,
        units: BlockingIterator[bytes | RawFrame | MotionFrame],
        session: VideoSession,
        stack: ExitStack,
        *,
        seed: int,
        total_s: float | None,
        began_s: float,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.seed, self.total_s, self.began_s = seed, total_s, began_s
        self.warnings = warnings
        self._units, self._session, self._stack = units, session, stack

    @property
    def total_frames(self) -> int | None:
        """Frames of the whole video, as far as `total_s` is known."""
        return None if self.total_s is None else round(self.total_s * FPS)

    @property
    def frames(self) -> int:
        """Frames that have been made so far."""
        return self._session.frames

    @property
    def duration_s(self) -> float:
        """Seconds of sound that have been used so far."""
        return self._session.duration_s

    def __next__(self) -> Any:
        try:
            with client_errors():
                return next(self._units)
        except BaseException:  # StopIteration as well
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._units.close()
        self._stack.close()


class LocalStream(Iterator["Event | RawFrame"]):
    """A live session; see `fada_client.Stream`."""

    def __init__(self, session: VideoSession, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._session, self._loop = session, loop
        self._events = BlockingIterator(_events(session, name), loop)
        try:
            with client_errors():
                first = next(self._events)
        except BaseException:
            self.close()
            raise
        assert isinstance(first, Ready)
        self.ready: Ready = first

    def push_audio(self, pcm: bytes) -> None:
        """s16le mono at the session's sample rate, of any length."""
        self._call(self._session.push_audio, pcm)

    def interrupt(self) -> None:
        """Drop the sound that was pushed before this."""
        self._call(self._session.interrupt)

    def update(self, **options: Any) -> None:
        """Change options from the next window on."""
        with client_errors():
            for name in options.keys() - LIVE_OPTIONS:
                raise ServiceError(
                    "invalid_option", f"{name!r} cannot change, expected {', '.join(LIVE_OPTIONS)}"
                )
            changed = parse_options(options).model_dump(include=set(options))
        self._call(self._session.update, **changed)

    def state(self, state: str) -> None:
        """How the avatar behaves while it does not speak: listening, thinking or idle."""
        with client_errors():
            known = parse_state(state)
        self._call(self._session.update, state=known)

    def end(self) -> None:
        """No more sound: the session ends after the last of it."""
        self._call(self._session.end)

    def __next__(self) -> Event | RawFrame:
        with client_errors():
            return next(self._events)

    def close(self) -> None:
        self._events.close()

    def _call(self, method: Callable[..., None], *arguments: Any, **options: Any) -> None:
        async def called() -> None:
            method(*arguments, **options)

        asyncio.run_coroutine_threadsafe(called(), self._loop).result()


async def units(session: VideoSession) -> AsyncGenerator[bytes | RawFrame | MotionFrame, None]:
    """What an animation is iterated for."""
    async with aclosing(session):
        async for event, _ in session:
            if session.output == "motion":
                if isinstance(event, VideoFragment):
                    for one in _motion(event).frames:
                        yield one
            elif isinstance(event, VideoFragment) and event.pictures is not None:
                for frame in _raw_frames(event):
                    yield frame
            elif isinstance(event, VideoStarted | VideoFragment) and event.data:
                yield event.data


async def _events(session: VideoSession, name: str) -> AsyncGenerator[Event | RawFrame, None]:
    async with aclosing(session):
        async for event, _ in session:
            for one in _client_events(event, name, output=session.output):
                yield one
    yield Done(session.frames, session.duration_s)


def _client_events(
    event: VideoStarted | VideoFragment | SpeechInterrupted, name: str, *, output: str
) -> Iterator[Event | RawFrame]:
    """What a client of the service would read of ``event``."""
    if output == "motion" and isinstance(event, VideoFragment):
        yield _motion(event)
    elif output == "motion" and isinstance(event, VideoStarted):
        size = {"width": event.width, "height": event.height}
        ready = {"session_id": name, "seed": event.seed, "fps": FPS, **size, **MOTION_READY}
        yield known(Ready, ready)
    elif isinstance(event, VideoStarted):
        mime = f'video/mp4; codecs="{event.codecs}"' if event.codecs else ""
        yield Ready(name, event.seed, mime, FPS, event.width, event.height)
        if event.data:
            yield InitSegment(event.data)
    elif isinstance(event, SpeechInterrupted):
        yield Interrupted(event.at_s)
    elif event.pictures is not None:
        yield from _raw_frames(event)
    else:
        yield Fragment(
            index=event.index,
            start_s=event.first_frame / FPS,
            duration_s=event.frames / FPS,
            kind=_kind(event),
            data=event.data,
        )


def _motion(event: VideoFragment) -> Motion:
    fields = {
        "index": event.index,
        "start_s": event.first_frame / FPS,
        "duration_s": event.frames / FPS,
        "kind": _kind(event),
    }
    return wire.motion({"fps": FPS, **MOTION_READY}, motion_message(fields, event.data))


def _raw_frames(event: VideoFragment) -> Iterator[RawFrame]:
    """One by one, with the sound of each; the last has what is left."""
    assert event.pictures is not None and event.pcm is not None
    starts = [k * (SAMPLE_RATE // FPS) for k in range(len(event.pictures))]
    for k, picture in enumerate(event.pictures):
        sound = event.pcm[starts[k] : (starts + [len(event.pcm)])[k + 1]]
        index = event.first_frame + k
        yield RawFrame(index, index / FPS, _kind(event), picture=picture, sound=sound)


def _kind(event: VideoFragment) -> Kind:
    return "speech" if event.speech else "idle"


class BlockingIterator(Iterator[T]):
    """Iterates, from any thread, over a generator that runs on ``loop``."""

    def __init__(self, items: AsyncGenerator[T, None], loop: asyncio.AbstractEventLoop) -> None:
        self._items, self._loop = items, loop
        self._taking: asyncio.Task[Any] | None = None
        self._closed = False

    def __next__(self) -> T:
        try:
            item: T | None = asyncio.run_coroutine_threadsafe(self._take(), self._loop).result()
        except CancelledError:  # closed by another thread
            item = None
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    async def _take(self) -> T | None:
        if self._closed:
            return None
        self._taking = asyncio.current_task()
        return await anext(self._items, None)

    async def _close(self) -> None:
        self._closed = True  # a call that has not begun takes nothing
        if self._taking is not None:  # its caller was interrupted
            await cancel_and_wait([self._taking])
        await self._items.aclose()


@contextmanager
def client_errors() -> Iterator[None]:
    """The service's errors as those of its client."""
    try:
        yield
    except ServiceError as error:
        raise error_of(error.problem()) from error
    except SetupError as error:
        raise InvalidOption(str(error)) from error
