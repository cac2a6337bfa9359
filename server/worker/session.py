"""One session: speech goes in, fragments of video or motion come out, each with a snapshot.

    speech = LiveSpeech(16_000, pipeline.window_spec, options)  # or FileSpeech.open(decoded, …)
    session = VideoSession(batcher, reference, speech, seed=7, pool=pool)
    async with contextlib.aclosing(session):
        async for event, snapshot in session:
            ...  # VideoStarted once, then VideoFragment and, live only, SpeechInterrupted

A live session takes `push_audio`, `interrupt`, `update` and `end` at any time, on the event loop
that iterates it. The caller publishes, and no fragment is drawn before the caller asks for it:
back-pressure is to ask later. Only a file's next windows are denoised meanwhile.

A snapshot is the state right after its event. Given to a session in any other process, with the
same request and the sound that it does not hold yet, it continues exactly where this one stopped.
A session needs a running `Batcher` and a thread pool; it needs no broker and no server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from media.boxes import with_duration
from media.encoders import DEFAULT_ENCODING, Encoding
from media.fmp4 import SAMPLE_RATE
from model.types import FPS, Floats, Reference, WindowTask
from server.api.protocol import FaceState
from server.tasks import cancel_and_wait
from server.worker.batcher import Batcher
from server.worker.checkpoint import PartialWindow, Snapshot
from server.worker.outputs import MotionOutput, Output, RawOutput, VideoOutput, facial_space
from server.worker.pipelines import backdrop, behaviour, check_reference, sampling_options
from server.worker.speech import FileSpeech, Interruption, LiveSpeech, PlannedWindow

T = TypeVar("T")

_WINDOWS_AHEAD = 1  # of a file, denoised and waiting to be drawn


@dataclass(frozen=True)
class VideoStarted:
    """The first event: a video of this size will come. ``data`` is its init segment.

    Of motion, which has no size and no ``codecs``, it is the first of the JSON lines.

    ``total_s`` is the length of a file's speech, where it is known; ``warnings`` name what was
    repaired in it.
    """

    seed: int
    width: int
    height: int
    codecs: str
    total_s: float | None
    warnings: tuple[str, ...]
    data: bytes


@dataclass(frozen=True)
class VideoFragment:
    """Some frames and their sound: one ``moof`` + ``mdat``, or pixels and samples when ``raw``.

    Of motion, ``data`` is a `server.motion.FRAME` for each.

    The last fragment of all may hold sound alone (``frames`` 0). ``consumed_bytes`` of a live
    session's sound are no longer pending. ``offset`` and ``window_frames`` place the fragment in
    its window. ``work_s`` is the time it took, without waiting; a window's first fragment
    includes its denoising. ``draw_s`` and ``encode_s`` are parts of that.
    """

    index: int
    first_frame: int
    frames: int
    data: bytes
    speech: bool = True
    consumed_bytes: int = 0
    pictures: NDArray[np.uint8] | None = None  # raw: (frames, H, W, 3) RGB
    pcm: Floats | None = None  # (N,) mono at media.fmp4.SAMPLE_RATE, if asked for
    offset: int = 0
    window_frames: int = 0
    work_s: float = 0.0
    draw_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True)
class SpeechInterrupted:
    """What was pushed before an interrupt ended at ``at_s``."""

    at_s: float
    consumed_bytes: int


Event = VideoStarted | VideoFragment | SpeechInterrupted


class VideoSession:
    """An async iterator of (event, snapshot); see the module. Close it with `aclose`.

    Raises, while it is iterated, what decoding the speech and denoising a window raise.
    """

    def __init__(
        self,
        batcher: Batcher,
        reference: Reference,
        speech: FileSpeech | LiveSpeech,
        *,
        seed: int,
        pool: Executor,
        name: str = "session",
        snapshot: Snapshot | None = None,
        raw: bool = False,
        pcm: bool = False,
        encoding: Encoding = DEFAULT_ENCODING,
    ) -> None:
        """``pool`` draws and encodes; ``name`` is unique among the batcher's sessions.

        With ``snapshot`` the session goes on from there, and ``speech`` must be that of the
        snapshot. ``raw`` gives pixels and samples instead of MP4, ``pcm`` samples beside it.
        Raises `ServiceError` ``invalid_option`` for a reference of another latent space.
        """
        self._pipeline = batcher.pipeline
        check_reference(self._pipeline, reference)
        self._facial = facial_space(self._pipeline) if speech.options.output == "motion" else None
        self._batcher, self._reference, self._speech = batcher, reference, speech
        self._seed, self._pool, self._name, self._raw = seed, pool, name, raw
        self._with_pcm = raw or pcm
        self._encoding = encoding
        self.draw_every = 1  # of so many frames one is drawn, from the next fragment on
        self._snapshot = snapshot
        self._state = self._pipeline.start(seed) if snapshot is None else snapshot.state
        self._partial = None if snapshot is None else snapshot.partial
        # After all that was denoised; `_state` is after what was drawn.
        self._denoised_state = self._state if self._partial is None else self._partial.state_at_end
        self._events = self._run()

    def push_audio(self, pcm: bytes) -> None:
        """More sound of a live session: s16le mono, in pieces of any length."""
        self._live.push_audio(pcm)

    def interrupt(self) -> None:
        """Drop what was pushed and not shown; the face settles to rest."""
        self._live.interrupt()

    def update(self, *, state: FaceState | None = None, **options: object) -> None:
        """Change fields of `AnimationOptions`, or how the face acts while nothing is said, from the
        next window on."""
        self._live.update(state=state, **options)

    def end(self) -> None:
        """No more sound will come."""
        self._live.end()

    @property
    def output(self) -> Literal["video", "motion"]:
        """What the fragments hold."""
        return self._speech.options.output

    @property
    def frames(self) -> int:
        """Frames of the video up to the last event."""
        return 0 if self._snapshot is None else self._snapshot.state.frames_done

    @property
    def duration_s(self) -> float:
        """Seconds of sound up to the last event."""
        return 0.0 if self._snapshot is None else self._snapshot.video.samples_in / SAMPLE_RATE

    @property
    def late_s(self) -> float:
        """How far a live session's speech is behind real time; 0 or less while it is not."""
        return self._live.late_s

    def __aiter__(self) -> VideoSession:
        return self

    async def __anext__(self) -> tuple[Event, Snapshot]:
        event, snapshot = await anext(self._events)
        self._snapshot = snapshot
        return event, snapshot

    async def aclose(self) -> None:
        """End all that the session has under way."""
        await self._events.aclose()

    @property
    def _live(self) -> LiveSpeech:
        if isinstance(self._speech, FileSpeech):
            raise ValueError("the speech of this session is a file, expected live speech")
        return self._speech

    async def _run(self) -> AsyncGenerator[tuple[Event, Snapshot], None]:
        snapshot, speech = self._snapshot, self._speech
        if snapshot is not None and snapshot.closed:
            return
        windows = self._windows()
        # Preparing to draw takes as long as a file's first window: both go on at once.
        ahead = Prefetch(windows, _WINDOWS_AHEAD) if isinstance(speech, FileSpeech) else windows
        async with aclosing(ahead):
            output = await self._open(snapshot)
            if snapshot is None:
                yield self._started(output), self._now(output)
            if self._partial is not None:
                async for shown in self._show(output, self._partial, 0.0):
                    yield shown
            async for window in ahead:
                if isinstance(window, Interruption):
                    at_s = self._state.frames_done / FPS
                    yield SpeechInterrupted(at_s, speech.consumed_bytes), self._now(output)
                    continue
                async for shown in self._show(output, window.window, window.work_s):
                    yield shown
        now = self._now(output)
        data = await asyncio.get_running_loop().run_in_executor(self._pool, output.close)
        if data:
            closing = VideoFragment(
                index=now.video.sequence, first_frame=now.state.frames_done, frames=0, data=data
            )
            yield closing, replace(now, closed=True)

    async def _open(self, snapshot: Snapshot | None) -> Output:
        at = None if snapshot is None else snapshot.video
        if self._facial is not None:
            return MotionOutput(self._facial, self._reference, at)
        options, loop = self._speech.options, asyncio.get_running_loop()
        prepare = partial(
            self._pipeline.space.decoder,
            self._reference,
            options.size,
            options.framing,
            background=backdrop(self._pipeline, options),
        )
        decoder = await loop.run_in_executor(self._pool, prepare)
        if self._raw:
            return RawOutput(decoder, at)
        return VideoOutput(decoder, at, self._encoding)

    def _started(self, output: Output) -> VideoStarted:
        data, total_s = output.init_segment(), self._speech.total_s
        if output.codecs and total_s is not None:
            data = with_duration(data, total_s)
        return VideoStarted(
            seed=self._seed,
            width=output.width,
            height=output.height,
            codecs=output.codecs,
            total_s=total_s,
            warnings=self._speech.warnings,
            data=data,
        )

    async def _windows(self) -> AsyncGenerator[_Denoised | Interruption, None]:
        """What comes next, denoised one after the other."""
        while True:
            planned = await self._speech.next_window(self._denoised_state.window_index)
            if planned is None:
                return
            yield planned if isinstance(planned, Interruption) else await self._denoise(planned)

    async def _denoise(self, planned: PlannedWindow) -> _Denoised:
        before = self._denoised_state
        guidance, steps = sampling_options(self._pipeline, self._speech.options)
        acting = behaviour(self._speech.options, self._speech.face_state)
        task = WindowTask(planned.window, before, self._reference, guidance, steps, acting)
        latents, self._denoised_state = await self._batcher.step(
            self._name, planned.deadline_s, task
        )
        window = PartialWindow(speech=planned.speech, latents=latents, before=before, sent=0)
        return _Denoised(window, time.monotonic() - planned.began_s)

    async def _show(
        self, output: Output, window: PartialWindow, work_s: float
    ) -> AsyncGenerator[tuple[VideoFragment, Snapshot], None]:
        """A window's fragments, until an interrupt or speech makes the rest of them obsolete."""
        speech, loop, count = self._speech, asyncio.get_running_loop(), len(window.latents)
        for first in range(window.sent, count, speech.fragment_frames):
            if not await speech.still_wanted(window.speech, begun=first > 0):
                # The state goes on after the last frame that was drawn: the picture never jumps.
                self._denoised_state = self._state
                break
            began_s, first_frame = time.monotonic(), self._state.frames_done
            end = min(first + speech.fragment_frames, count)
            pcm = speech.take(end - first, speech=window.speech)
            draw = partial(output.add, window.latents[first:end], pcm, draw_every=self.draw_every)
            drawn = await loop.run_in_executor(self._pool, draw)
            window = replace(window, sent=end)
            self._state = window.state
            self._partial = window if end < count else None
            now = self._now(output)
            fragment = VideoFragment(
                index=now.video.sequence - 1,
                first_frame=first_frame,
                frames=end - first,
                data=drawn.data,
                speech=window.speech,
                consumed_bytes=speech.consumed_bytes,
                pictures=drawn.pictures,
                pcm=pcm if self._with_pcm else None,
                offset=first,
                window_frames=count,
                work_s=work_s + time.monotonic() - began_s,
                draw_s=drawn.draw_s,
                encode_s=drawn.encode_s,
            )
            work_s = 0.0
            yield fragment, now
        self._partial = None

    def _now(self, output: Output) -> Snapshot:
        """Where the session stands; between two fragments, when nothing is being encoded."""
        return Snapshot(
            self._state,
            output.state(),
            speech=self._speech.state(),
            partial=self._partial,
        )


@dataclass(frozen=True)
class _Denoised:
    window: PartialWindow
    work_s: float


class Prefetch(Generic[T]):
    """Runs an async iterator in a task of its own, up to ``ahead`` + 1 items ahead of its reader.

    What it raises is raised in its place, after the items that came before it.
    """

    def __init__(self, items: AsyncGenerator[T, None], ahead: int) -> None:
        self._ready: asyncio.Queue[T | Exception] = asyncio.Queue(ahead)
        self._task = asyncio.create_task(self._fill(items))

    def __aiter__(self) -> Prefetch[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._ready.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        await cancel_and_wait([self._task])

    async def _fill(self, items: AsyncGenerator[T, None]) -> None:
        end: Exception = StopAsyncIteration()
        try:
            async with aclosing(items):
                async for item in items:
                    await self._ready.put(item)
        except Exception as error:
            end = error
        await self._ready.put(end)
