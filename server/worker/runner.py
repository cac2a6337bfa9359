"""One animation from inputs to fragments: the same code under the worker and `fada animate`.

Knows: how sound becomes windows, windows latents, latents frames and frames fragments, and that
drawing one window overlaps with the network's next. Does not know where inputs come from, where
events go, or who else runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from model.audio.windows import AudioWindower
from model.conditioning import FPS, Floats, Guidance, Reference, Window
from model.pipeline import AvatarPipeline, FrameDecoder, WindowTask
from server.broker.messages import Done, Fragment, Started
from server.errors import ServiceError
from server.media.decode import Speech
from server.media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from server.protocol import AnimationOptions
from server.worker.batcher import Batcher

_OUTPUT_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

Emit = Callable[[Started | Fragment], Awaitable[None]]
Room = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Piece:
    """A window with the sound of its frames, at the output's sample rate."""

    window: Window
    pcm: Floats


class Pieces:
    """Cuts a speech into `Piece`s, decoding no more than the next one needs."""

    def __init__(self, speech: Speech) -> None:
        self._blocks = speech.blocks
        self._windower = AudioWindower()
        self._windows: deque[Window] = deque()
        self._pcm: Floats = np.zeros(0, np.float32)
        self._ended = False

    def next(self) -> Piece | None:
        """``None`` after the last. Raises what the decoder raises."""
        while not self._ended and not self._complete():
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                self._windows += self._windower.finish()
            else:
                self._pcm = np.concatenate([self._pcm, block.output])
                self._windows += self._windower.push(block.model)
        if not self._windows:
            return None
        window = self._windows.popleft()
        last = self._ended and not self._windows
        count = len(self._pcm) if last else window.frames * _OUTPUT_SAMPLES_PER_FRAME
        pcm, self._pcm = self._pcm[:count], self._pcm[count:]
        return Piece(window, pcm)

    def _complete(self) -> bool:
        if not self._windows:
            return False
        return len(self._pcm) >= self._windows[0].frames * _OUTPUT_SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Animation:
    """Everything that one video is made of, ready to run."""

    pipeline: AvatarPipeline
    reference: Reference
    size: int
    framing: str
    pieces: Pieces
    first: Piece
    total_s: float | None
    guidance: Guidance
    steps: int
    seed: int


def prepare(
    pipeline: AvatarPipeline,
    reference: Reference,
    speech: Speech,
    options: AnimationOptions,
    seed: int,
) -> Animation:
    """Decode the first piece and settle what the student leaves open; blocks for milliseconds.

    Raises `ServiceError` ``invalid_option`` for an avatar of another latent space, and what the
    audio decoder raises.
    """
    check_reference(pipeline, reference)
    pieces = Pieces(speech)
    first = pieces.next()
    if first is None:
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
    )


def check_reference(pipeline: AvatarPipeline, reference: Reference) -> None:
    """Raises `ServiceError` ``invalid_option`` for an avatar of another latent space."""
    if reference.latent_space != pipeline.space.name:
        raise ServiceError(
            "invalid_option",
            f"model {pipeline.info.name!r} draws {pipeline.space.name!r} avatars; "
            f"this one was prepared for {reference.latent_space!r}",
        )


def knobs(pipeline: AvatarPipeline, options: AnimationOptions) -> tuple[Guidance, int]:
    """Guidance and steps, with the student's own where ``options`` leaves them open."""
    default = pipeline.info.guidance
    guidance = Guidance(
        audio=default.audio if options.audio_cfg is None else options.audio_cfg,
        reference=default.reference if options.reference_cfg is None else options.reference_cfg,
    )
    return guidance, pipeline.info.steps if options.steps is None else options.steps


async def open_video(
    pipeline: AvatarPipeline,
    reference: Reference,
    size: int,
    framing: str,
    seed: int,
    total_s: float | None,
    pool: Executor,
) -> tuple[FrameDecoder, FragmentedMP4Muxer, Started]:
    """Prepare to draw and to encode; the event says so."""
    loop = asyncio.get_running_loop()
    decoder = await loop.run_in_executor(pool, pipeline.space.decoder, reference, size, framing)
    muxer = FragmentedMP4Muxer(decoder.width, decoder.height, FPS)
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
    ``room`` is awaited before each window: it returns when the reader keeps up. ``pool`` decodes
    and draws. The first exception of any part ends all of them and is raised.
    """
    ready: asyncio.Queue[tuple[Piece, Floats] | None] = asyncio.Queue(maxsize=1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_think(animation, session, deadline_s, batcher, pool, ready, room))
            drawing = group.create_task(_draw(animation, pool, ready, emit))
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    return drawing.result()


async def _think(
    animation: Animation,
    session: str,
    deadline_s: float,
    batcher: Batcher,
    pool: Executor,
    ready: asyncio.Queue[tuple[Piece, Floats] | None],
    room: Room,
) -> None:
    loop = asyncio.get_running_loop()
    state = animation.pipeline.start(animation.seed)
    piece: Piece | None = animation.first
    while piece is not None:
        await room()
        task = WindowTask(
            piece.window, state, animation.reference, animation.guidance, animation.steps
        )
        due_s = deadline_s + state.frames_done / FPS
        latents, state = await batcher.step(session, due_s, task)
        await ready.put((piece, latents))
        piece = await loop.run_in_executor(pool, animation.pieces.next)
    await ready.put(None)


async def _draw(
    animation: Animation,
    pool: Executor,
    ready: asyncio.Queue[tuple[Piece, Floats] | None],
    emit: Emit,
) -> Done:
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
    )
    await emit(started)
    index = frames = samples = 0
    while (item := await ready.get()) is not None:
        piece, latents = item
        drawn = decoder.decode(latents)
        data = await loop.run_in_executor(pool, muxer.add, drawn, piece.pcm)
        await emit(fragment(index, frames, piece.window.frames, data))
        index, frames, samples = index + 1, frames + piece.window.frames, samples + len(piece.pcm)
    data = await loop.run_in_executor(pool, muxer.close)
    if data:
        await emit(fragment(index, frames, 0, data))
    return Done(frames=frames, duration_s=samples / SAMPLE_RATE)


def fragment(index: int, first_frame: int, frames: int, data: bytes) -> Fragment:
    """The event of one encoded fragment of an animation."""
    return Fragment(
        index=index,
        first_frame=first_frame,
        frames=frames,
        start_s=first_frame / FPS,
        duration_s=frames / FPS,
        data=data,
    )
