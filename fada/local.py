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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fada_client import Avatar, Model
from fada_client.errors import InvalidOption, NotFound
from fada_client.types import known
from fada_client.wire import Media, contents

from fada.local_sessions import (
    BlockingIterator,
    LocalAnimation,
    LocalStream,
    client_errors,
    units,
)
from fada.local_sessions import (
    RawFrame as RawFrame,
)
from fada.motion import motion_file
from media.fmp4 import SAMPLE_RATE
from model.portrait.image import LoadedPicture
from model.types import Reference
from server.api.protocol import AnimationOptions, parse_options
from server.errors import ServiceError
from server.settings import Settings
from server.tasks import cancel_and_wait
from server.worker.batcher import Batcher
from server.worker.marks import load_marks
from server.worker.pipelines import encode_portrait, load_pipelines, model_names, model_view
from server.worker.sandbox import Sandbox
from server.worker.session import VideoSession
from server.worker.speech import FileSpeech, LiveSpeech

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline


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
        with client_errors():
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
        if frames and options.get("output") == "motion":
            raise ValueError("frames = True and output = 'motion', expected one of them")
        with client_errors():
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
                    BlockingIterator(units(session), self._loop),
                    session,
                    stack.pop_all(),
                    seed=seed,
                    total_s=speech.duration_s,
                    began_s=began_s,
                    warnings=speech.warnings,
                )
        if out is not None and parsed.output == "motion":
            with animation, Path(out).open("wb") as file:
                file.writelines(motion_file(animation, out))
        elif out is not None:
            with animation, Path(out).open("wb") as file:
                file.writelines(animation)
            with client_errors():
                self.marks.sign_file(Path(out))
        return animation

    def create_avatar(self, portrait: Media, *, model: str | None = None) -> Avatar:
        """Prepare a portrait; it is kept until it is deleted, or this client closed."""
        with client_errors():
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
        with client_errors():
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
        with client_errors():
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

    def _decoded(self, portrait: Media | None, avatar_id: str | None) -> Reference | LoadedPicture:
        if (portrait is None) == (avatar_id is None):
            raise ServiceError("bad_request", "expected a portrait or an avatar_id, one of them")
        if avatar_id is not None:
            return self._stored(avatar_id)
        assert portrait is not None
        return self._sandbox.picture(contents(portrait))

    def _reference(self, decoded: Reference | LoadedPicture) -> Reference:
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
            encoding=self.marks.encoding,
        )


def _seed(options: AnimationOptions) -> int:
    return secrets.randbelow(2**63) if options.seed is None else options.seed


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
