"""One animation from inputs to fragments: the same code under the worker and `fada animate`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from media.decode import DecodedSpeech
from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from model.audio.frontend import AudioWindowSpec
from model.audio.windows import AudioWindower
from model.types import (
    FPS,
    SAMPLES_PER_FRAME,
    Floats,
    Guidance,
    Reference,
    SessionState,
    Window,
    WindowTask,
)
from server import metrics
from server.api.protocol import AnimationOptions
from server.broker.messages import Done, Fragment, Started
from server.errors import ServiceError
from server.tasks import cancel_and_wait
from server.worker.batcher import Batcher
from server.worker.checkpoint import Snapshot

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline, FrameDecoder

_OUTPUT_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

Emit = Callable[[Started | Fragment, Snapshot], Awaitable[None]]
Room = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class SpeechWindow:
    """A window with the sound of its frames, at the output's sample rate."""

    window: Window
    pcm: Floats


class SpeechWindows:
    """Cuts a speech into `SpeechWindow`s, decoding no more than the next one needs.

    ``first`` is the first window that is wanted: what lies before it is decoded, but not cut.
    """

    def __init__(self, speech: DecodedSpeech, window_spec: AudioWindowSpec, first: int = 0) -> None:
        self._blocks = speech.blocks
        self._windower = AudioWindower(window_spec)
        # Begun so early, the windower knows the whole past of the first that is wanted.
        self._early = max(0, first - window_spec.warmup_windows)
        self._unwanted = first - self._early
        self._skip = self._early * window_spec.hop * SAMPLES_PER_FRAME
        self._skip_output = first * window_spec.hop * _OUTPUT_SAMPLES_PER_FRAME
        self._windows: deque[Window] = deque()
        self._pcm: Floats = np.zeros(0, np.float32)
        self._ended = False

    def next(self) -> SpeechWindow | None:
        """``None`` after the last. Raises what the decoder raises."""
        while not self._ended and not self._complete():
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                self._cut(self._windower.finish())
                continue
            model, output = block.model[self._skip :], block.output[self._skip_output :]
            self._skip -= len(block.model) - len(model)
            self._skip_output -= len(block.output) - len(output)
            self._pcm = np.concatenate([self._pcm, output])
            self._cut(self._windower.push(model))
        if not self._windows:
            return None
        window = self._windows.popleft()
        last = self._ended and not self._windows
        count = len(self._pcm) if last else window.frames * _OUTPUT_SAMPLES_PER_FRAME
        pcm, self._pcm = self._pcm[:count], self._pcm[count:]
        return SpeechWindow(window, pcm)

    def _cut(self, windows: list[Window]) -> None:
        for window in windows:
            if window.index >= self._unwanted:
                self._windows.append(replace(window, index=window.index + self._early))

    def _complete(self) -> bool:
        if not self._windows:
            return False
        return len(self._pcm) >= self._windows[0].frames * _OUTPUT_SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Animation:
    """Everything that one video is made of, ready to run, or to go on after ``left``."""

    pipeline: AvatarPipeline
    reference: Reference
    size: int
    framing: str
    pieces: SpeechWindows
    first: SpeechWindow | None
    total_s: float | None
    guidance: Guidance
    steps: int
    seed: int
    left: Snapshot | None


def prepare(
    pipeline: AvatarPipeline,
    reference: Reference,
    speech: DecodedSpeech,
    options: AnimationOptions,
    seed: int,
    left: Snapshot | None = None,
) -> Animation:
    """Decode the first piece and settle what the student leaves open; blocks for milliseconds.

    To go on after ``left``, all before it is decoded again.
    Raises `ServiceError` ``invalid_option`` for an avatar of another latent space, and what the
    audio decoder raises.
    """
    check_reference(pipeline, reference)
    first_window = 0 if left is None else left.state.window_index
    pieces = SpeechWindows(speech, pipeline.window_spec, first_window)
    first = pieces.next()
    if first is None and left is None:
        raise ServiceError("empty_audio", "the audio holds no samples")
    guidance, steps = knobs(pipeline, options)
    return Animation(
        pipeline=pipeline,
        reference=reference,
        size=options.size,
        framing=options.framing,
        pieces=pieces,
        first=first,
        total_s=speech.duration_s,
        guidance=guidance,
        steps=steps,
        seed=seed,
        left=left,
    )


def check_reference(pipeline: AvatarPipeline, reference: Reference) -> None:
    """Raises `ServiceError` ``invalid_option`` for an avatar of another latent space."""
    try:
        reference.expect(pipeline.space.name)
    except ValueError as error:
        raise ServiceError("invalid_option", f"model {pipeline.name!r}: {error}") from error


def knobs(pipeline: AvatarPipeline, options: AnimationOptions) -> tuple[Guidance, int]:
    """Guidance and steps, with the student's own where ``options`` leaves them open."""
    default = pipeline.metadata.guidance
    guidance = Guidance(
        audio=default.audio if options.audio_cfg is None else options.audio_cfg,
        reference=default.reference if options.reference_cfg is None else options.reference_cfg,
    )
    return guidance, pipeline.metadata.steps if options.steps is None else options.steps


async def open_video(
    pipeline: AvatarPipeline,
    reference: Reference,
    size: int,
    framing: str,
    seed: int,
    total_s: float | None,
    pool: Executor,
    left: Snapshot | None,
) -> tuple[FrameDecoder, FragmentedMP4Muxer, Started]:
    """Prepare to draw and to encode, or to go on with it after ``left``; the event says so."""
    loop = asyncio.get_running_loop()
    decoder = await loop.run_in_executor(pool, pipeline.space.decoder, reference, size, framing)
    place = () if left is None else (left.video,)
    muxer = FragmentedMP4Muxer(decoder.width, decoder.height, FPS, *place)
    started = Started(
        seed=seed,
        width=decoder.width,
        height=decoder.height,
        fps=FPS,
        codecs=muxer.codecs,
        total_s=total_s,
        data=muxer.init_segment(),
    )
    return decoder, muxer, started


async def run(
    animation: Animation,
    session: str,
    deadline_s: float,
    batcher: Batcher,
    pool: Executor,
    emit: Emit,
    room: Room,
) -> Done:
    """Make the whole video; returns when its last fragment was emitted.

    ``deadline_s`` is when the first frame is wanted, and each window by its media time after it.
    ``room`` is awaited before each window: it returns when the reader keeps up. ``pool`` draws.
    The first exception of any part ends all of them and is raised.
    """
    left = animation.left
    if left is not None and left.closed:
        return _done(left)
    ready: _Ready = asyncio.Queue(maxsize=1)
    denoising = asyncio.create_task(_denoise(animation, session, deadline_s, batcher, ready, room))
    drawing = asyncio.create_task(_draw(animation, pool, ready, emit))
    try:  # no TaskGroup: it cancels once, which can get lost, and then waits for ever
        done, _ = await asyncio.wait({denoising, drawing}, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return drawing.result()
    finally:
        await cancel_and_wait([denoising, drawing])


@dataclass(frozen=True)
class _Thought:
    piece: SpeechWindow
    latents: Floats
    after: SessionState


_Ready = asyncio.Queue[_Thought | None]


async def _denoise(
    animation: Animation,
    session: str,
    deadline_s: float,
    batcher: Batcher,
    ready: _Ready,
    room: Room,
) -> None:
    state = _begin(animation)
    begin_s = deadline_s - state.frames_done / FPS
    piece = animation.first
    while piece is not None:
        await room()
        task = WindowTask(
            piece.window, state, animation.reference, animation.guidance, animation.steps
        )
        due_s = begin_s + state.frames_done / FPS
        latents, state = await batcher.step(session, due_s, task)
        await ready.put(_Thought(piece, latents, state))
        piece = await asyncio.to_thread(animation.pieces.next)
    await ready.put(None)


async def _draw(animation: Animation, pool: Executor, ready: _Ready, emit: Emit) -> Done:
    loop = asyncio.get_running_loop()
    # Preparing to draw takes as long as the network's first window: both go on at once.
    decoder, muxer, started = await open_video(
        animation.pipeline,
        animation.reference,
        animation.size,
        animation.framing,
        animation.seed,
        animation.total_s,
        pool,
        animation.left,
    )
    now = Snapshot(_begin(animation), muxer.state())
    if animation.left is None:
        await emit(started, now)
    while (thought := await ready.get()) is not None:
        piece = (thought.latents, thought.piece.pcm)
        data = await loop.run_in_executor(pool, encode, decoder, muxer, *piece)
        first = now.state.frames_done
        event = fragment(now.video.sequence, first, len(thought.latents), data)
        now = Snapshot(thought.after, muxer.state())
        await emit(event, now)
    data = await loop.run_in_executor(pool, muxer.close)
    if data:
        event = fragment(now.video.sequence, now.state.frames_done, 0, data)
        await emit(event, replace(now, closed=True))
    return _done(now)


def _begin(animation: Animation) -> SessionState:
    left = animation.left
    return animation.pipeline.start(animation.seed) if left is None else left.state


def _done(now: Snapshot) -> Done:
    return Done(frames=now.state.frames_done, duration_s=now.video.samples_in / SAMPLE_RATE)


def encode(decoder: FrameDecoder, muxer: FragmentedMP4Muxer, latents: Floats, pcm: Floats) -> bytes:
    """Draw and encode one fragment; blocks."""
    began_s = time.monotonic()
    drawn = metrics.Drawing(decoder.decode(latents))
    data = muxer.add(drawn, pcm)
    metrics.stage("draw", drawn.seconds)
    metrics.stage("encode", time.monotonic() - began_s - drawn.seconds)
    return data


def fragment(index: int, first_frame: int, frames: int, data: bytes) -> Fragment:
    """The event of one encoded fragment."""
    return Fragment(
        index=index,
        first_frame=first_frame,
        frames=frames,
        start_s=first_frame / FPS,
        duration_s=frames / FPS,
        data=data,
    )
