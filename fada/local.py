"""The client's verbs without a service: animate and stream in this process.

The worker's own session makes the video (`server.worker.session`), without a broker. Sessions run
on an event loop in a thread; callers block, as with `fada_client.Client`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
from fada_client import Avatar, Done, Event, Fragment, InitSegment, Interrupted, Model, Ready
from fada_client.errors import InvalidOption, NotFound, error_of
from fada_client.types import known
from fada_client.wire import Media, contents
from numpy.typing import NDArray

from media.fmp4 import SAMPLE_RATE
from model.types import FPS, Floats, Reference
from server.api.protocol import AnimationOptions, parse_options
from server.broker.messages import Update
from server.errors import ServiceError, SetupError
from server.settings import Settings
from server.tasks import cancel_and_wait
from server.worker.batcher import Batcher
from server.worker.marks import load_marks
from server.worker.pipelines import encode_portrait, load_pipelines, model_names, model_view
from server.worker.sandbox import Sandbox
from server.worker.session import SpeechInterrupted, VideoFragment, VideoSession, VideoStarted
from server.worker.speech import FileSpeech, LiveSpeech

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline

T = TypeVar("T")
Kind = Literal["speech", "idle"]

_LIVE_OPTIONS = tuple(name for name in Update.model_fields if name != "type")


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


def load(model: str | None = None, *, weights: str | Path | None = None) -> LocalClient:
    """A student in this process, ready to animate; close it, or use it as a context manager.

    ``model``: a name, as `Client.models` lists them, or a kind; ``None``: the default student.
    ``weights``: a file with a student of your own. Raises `fada_client.InvalidOption` for a student
    that cannot be had. Other settings come from the environment (``FADA_*``).
    """
    given: dict[str, Any] = {"models": None if model is None else (model,), "weights": weights}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    client = LocalClient(settings)
    try:
        client.models()
    except BaseException:
        client.close()
        raise
    return client


class LocalClient:
    """What `fada_client.Client` does, without a service; see `load`. May be used by any thread."""

    def __init__(self, settings: Settings, model: str | None = None) -> None:
        """Loads ``model`` when it is first needed. Raises `InvalidOption` for an unknown one."""
        with _client_errors():
            names = model_names(settings)
            self.marks = load_marks(settings)
        if model not in (None, *names):
            raise InvalidOption(f"model = {model!r}, expected one of {', '.join(names)}")
        self._settings, self._name = settings, model or names[0]
        self._lock = threading.Lock()  # of loading, and of the face tracker
        self._batcher: Batcher | None = None
        self._avatars: dict[str, Reference] = {}
        with ExitStack() as stack:
            self._network = stack.enter_context(ThreadPoolExecutor(1, "network"))
            self._pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1, "draw"))
            self._sandbox = stack.enter_context(closing(Sandbox()))
            self._loop = stack.enter_context(_event_loop())
            self._stack = stack.pop_all()

    def animate(
        self,
        portrait: Media | None,
        audio: Media,
        out: str | Path | None = None,
        *,
        frames: bool = False,
        avatar_id: str | None = None,
        **options: Any,
    ) -> LocalAnimation:
        """See `fada_client.Client.animate`. With ``frames``, iterate for `RawFrame`s instead."""
        if frames and out is not None:
            raise ValueError("frames = True and out, expected one of them: a file is encoded")
        with _client_errors():
            parsed = self._options(options)
            blob = contents(audio)
            speech = self._sandbox.speech(blob, SAMPLE_RATE, self._settings.max_audio_s)
            with ExitStack() as stack:
                stack.enter_context(closing(speech.blocks))
                decoded = self._decoded(portrait, avatar_id)
                spec = self._loaded().pipeline.window_spec
                began_s, seed = time.monotonic(), _seed(parsed)
                reference = self._reference(decoded)
                opened = FileSpeech.open(speech, spec, parsed)
                session = self._session(reference, opened, seed, raw=frames)
                animation = LocalAnimation(
                    _BlockingIterator(_units(session), self._loop),
                    session,
                    stack.pop_all(),
                    seed=seed,
                    total_s=speech.duration_s,
                    began_s=began_s,
                )
        if out is not None:
            with animation, Path(out).open("wb") as file:
                file.writelines(animation)
            self.marks.sign_file(Path(out))
        return animation

    def create_avatar(self, portrait: Media, *, model: str | None = None) -> Avatar:
        """Prepare a portrait; it is kept until it is deleted, or this client closed."""
        with _client_errors():
            self._options({"model": model} if model else {})
            reference = self._reference(self._decoded(portrait, None))
        avatar_id = secrets.token_hex(12)
        self._avatars[avatar_id] = reference
        return self.avatar(avatar_id)

    def avatar(self, avatar_id: str) -> Avatar:
        reference = self._stored(avatar_id)
        return Avatar(
            avatar_id=avatar_id,
            width=reference.width,
            height=reference.height,
            face_box=reference.face_box,
            face_confidence=reference.face_confidence,
        )

    def delete_avatar(self, avatar_id: str) -> None:
        self._stored(avatar_id)
        del self._avatars[avatar_id]

    def models(self) -> list[Model]:
        """The one that is loaded."""
        with _client_errors():
            return [known(Model, model_view(self._loaded().pipeline).model_dump())]

    @contextmanager
    def stream(
        self,
        avatar_id: str | None = None,
        *,
        portrait: Media | None = None,
        sample_rate: int = 16_000,
        idle: bool = False,
        frames: bool = False,
        **options: Any,
    ) -> Iterator[LocalStream]:
        """See `fada_client.Client.stream`.

        With ``frames``, `RawFrame`s come in place of `InitSegment` and `Fragment`.
        """
        with _client_errors():
            parsed = self._options(options)
            reference = self._reference(self._decoded(portrait, avatar_id))
            spec = self._loaded().pipeline.window_spec
            if not 8_000 <= sample_rate <= 48_000:
                raise InvalidOption(f"sample_rate = {sample_rate}, expected 8000 to 48000")
            speech = LiveSpeech(sample_rate, spec, parsed, idle=idle, pool=self._pool)
            session = self._session(reference, speech, _seed(parsed), raw=frames)
        with closing(LocalStream(session, self._loop, secrets.token_hex(12))) as stream:
            yield stream

    def close(self) -> None:
        """End all sessions and give up threads and decoders."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _options(self, options: Mapping[str, Any]) -> AnimationOptions:
        parsed = parse_options({name: v for name, v in options.items() if v is not None})
        if parsed.model not in (None, self._name):
            raise InvalidOption(f"model = {parsed.model!r}, expected {self._name!r}")
        return parsed

    def _loaded(self) -> Batcher:
        with self._lock:
            if self._batcher is None:
                pipeline = load_pipelines(self._settings, [self._name])[self._name]
                self._batcher = Batcher(pipeline, self._network)
                asyncio.run_coroutine_threadsafe(self._batcher.run(), self._loop)
            return self._batcher

    def _decoded(self, portrait: Media | None, avatar_id: str | None) -> Reference | NDArray[Any]:
        if (portrait is None) == (avatar_id is None):
            raise ServiceError("bad_request", "expected a portrait or an avatar_id, one of them")
        if avatar_id is not None:
            return self._stored(avatar_id)
        assert portrait is not None
        return self._sandbox.picture(contents(portrait))

    def _reference(self, decoded: Reference | NDArray[Any]) -> Reference:
        if isinstance(decoded, Reference):
            return decoded
        pipeline: AvatarPipeline = self._loaded().pipeline
        with self._lock:
            return encode_portrait(pipeline, decoded)

    def _stored(self, avatar_id: str) -> Reference:
        if avatar_id not in self._avatars:
            raise NotFound(f"there is no avatar {avatar_id!r}", status=404)
        return self._avatars[avatar_id]

    def _session(
        self, reference: Reference, speech: FileSpeech | LiveSpeech, seed: int, *, raw: bool
    ) -> VideoSession:
        name = secrets.token_hex(12)
        return VideoSession(
            self._loaded(),
            reference,
            speech,
            seed=seed,
            pool=self._pool,
            name=name,
            raw=raw,
            label=self.marks.label,
        )


def _seed(options: AnimationOptions) -> int:
    return secrets.randbelow(2**63) if options.seed is None else options.seed


class LocalAnimation(Iterator[Any]):
    """A video while it is being made: bytes as in `fada_client.Animation`, or `RawFrame`s.

    ``total_s``: length of the sound, where its container states it; ``began_s``: when the student
    began, of ``time.monotonic``.
    """

    def __init__(
        self,
        units: _BlockingIterator[bytes | RawFrame],
        session: VideoSession,
        stack: ExitStack,
        *,
        seed: int,
        total_s: float | None,
        began_s: float,
    ) -> None:
        self.seed, self.total_s, self.began_s = seed, total_s, began_s
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
            with _client_errors():
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
        self._events = _BlockingIterator(_events(session, name), loop)
        try:
            with _client_errors():
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
        with _client_errors():
            for name in options.keys() - _LIVE_OPTIONS:
                raise ServiceError(
                    "invalid_option", f"{name!r} cannot change, expected {', '.join(_LIVE_OPTIONS)}"
                )
            changed = parse_options(options).model_dump(include=set(options))
        self._call(self._session.update, **changed)

    def end(self) -> None:
        """No more sound: the session ends after the last of it."""
        self._call(self._session.end)

    def __next__(self) -> Event | RawFrame:
        with _client_errors():
            return next(self._events)

    def close(self) -> None:
        self._events.close()

    def _call(self, method: Callable[..., None], *arguments: Any, **options: Any) -> None:
        async def called() -> None:
            method(*arguments, **options)

        asyncio.run_coroutine_threadsafe(called(), self._loop).result()


async def _units(session: VideoSession) -> AsyncGenerator[bytes | RawFrame, None]:
    async with aclosing(session):
        async for event, _ in session:
            if isinstance(event, VideoFragment) and event.pictures is not None:
                for frame in _raw_frames(event):
                    yield frame
            elif isinstance(event, VideoStarted | VideoFragment) and event.data:
                yield event.data


async def _events(session: VideoSession, name: str) -> AsyncGenerator[Event | RawFrame, None]:
    async with aclosing(session):
        async for event, _ in session:
            for one in _client_events(event, name):
                yield one
    yield Done(session.frames, session.duration_s)


def _client_events(
    event: VideoStarted | VideoFragment | SpeechInterrupted, name: str
) -> Iterator[Event | RawFrame]:
    """What a client of the service would read of ``event``."""
    if isinstance(event, VideoStarted):
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


class _BlockingIterator(Iterator[T]):
    """Iterates, from any thread, over a generator that runs on ``loop``."""

    def __init__(self, items: AsyncGenerator[T, None], loop: asyncio.AbstractEventLoop) -> None:
        self._items, self._loop = items, loop
        self._taking: asyncio.Task[Any] | None = None

    def __next__(self) -> T:
        item: T | None = asyncio.run_coroutine_threadsafe(self._take(), self._loop).result()
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    async def _take(self) -> T | None:
        self._taking = asyncio.current_task()
        return await anext(self._items, None)

    async def _close(self) -> None:
        if self._taking is not None:  # its caller was interrupted
            await cancel_and_wait([self._taking])
        await self._items.aclose()


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread; at the end all its tasks are cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sessions", daemon=True)
    thread.start()

    async def finish() -> None:
        await cancel_and_wait(asyncio.all_tasks() - {asyncio.current_task()})
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()

    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(finish(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def _client_errors() -> Iterator[None]:
    """The service's errors as those of its client."""
    try:
        yield
    except ServiceError as error:
        raise error_of(error.problem()) from error
    except SetupError as error:
        raise InvalidOption(str(error)) from error
