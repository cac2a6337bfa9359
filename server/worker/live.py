"""One live session from commands to fragments.

Knows: how a session's windows follow one another when sound comes while the video goes out, and
what an interrupt undoes. Does not know what a window means, who else runs, or the broker.

One window is thought, drawn and sent before the next is begun, in fragments of four frames: so an
interrupt finds at most 160 ms under way. The state that goes on is the one after the last frame
that was sent, so the picture never jumps, whatever was thought of and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from model.conditioning import FPS, Floats, Guidance, Reference, SessionState
from model.pipeline import AvatarPipeline, FrameDecoder, WindowTask
from server.broker import messages
from server.media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from server.worker.batcher import Batcher
from server.worker.live_sound import (
    FRAGMENT_FRAMES,
    OUTPUT_SAMPLES_PER_FRAME,
    Director,
    LiveSound,
    Turn,
    Wait,
)
from server.worker.runner import check_reference, knobs, open_video

Emit = Callable[[messages.Progress], Awaitable[None]]
Room = Callable[[], Awaitable[None]]
Clock = Callable[[], float]


class LiveInput:
    """What the client says, as it comes; `LiveSession` looks at it when it can."""

    def __init__(self, request: messages.LiveRequest, clock: Clock) -> None:
        self.clock = clock
        self.sound = LiveSound(request.sample_rate)
        self.director = Director(self.sound, request.idle, clock())
        self.options = request.options
        self.interrupts = 0
        self._news = asyncio.Event()

    def hear(self, command: messages.LiveCommand) -> None:
        """Take one command in; returns at once."""
        if isinstance(command, messages.Sound):
            self.director.heard(command.data, self.clock())
        elif isinstance(command, messages.Interrupt):
            self.director.interrupted()
            self.interrupts += 1
        elif isinstance(command, messages.Update):
            change = {k: v for k, v in command.model_dump().items() if v is not None}
            change.pop("type")
            self.options = self.options.model_copy(update=change)
        else:
            self.director.end()
        self._news.set()

    async def news(self, until_s: float | None) -> None:
        """Wait for the next command, at most until ``until_s``."""
        self._news.clear()
        timeout_s = None if until_s is None else max(0.0, until_s - self.clock())
        try:
            await asyncio.wait_for(self._news.wait(), timeout_s)
        except TimeoutError:
            return


@dataclass(frozen=True)
class _Video:
    decoder: FrameDecoder
    muxer: FragmentedMP4Muxer


class LiveSession:
    """``emit`` sends an event; ``room`` returns when the reader has read all that was sent."""

    def __init__(
        self,
        pipeline: AvatarPipeline,
        reference: Reference,
        request: messages.LiveRequest,
        heard: LiveInput,
        emit: Emit,
        room: Room,
        pool: Executor,
    ) -> None:
        """Raises `ServiceError` ``invalid_option`` for an avatar of another latent space."""
        check_reference(pipeline, reference)
        self._pipeline, self._reference, self._request = pipeline, reference, request
        self._input, self._emit, self._room, self._pool = heard, emit, room, pool
        self._state: SessionState = pipeline.start(request.seed)
        self._index = self._samples = self._interrupts = 0

    async def run(self, session: str, batcher: Batcher) -> messages.Done:
        """The whole session; returns when its last fragment was emitted."""
        options = self._request.options
        decoder, muxer, started = await open_video(
            self._pipeline,
            self._reference,
            options.size,
            options.framing,
            self._request.seed,
            None,
            self._pool,
        )
        await self._emit(started)
        video = _Video(decoder, muxer)
        while (turn := await self._turn()) is not None:
            await self._window(session, batcher, video, turn)
        loop = asyncio.get_running_loop()
        rest = await loop.run_in_executor(self._pool, muxer.close)
        if rest:
            await self._send(0, rest, speech=True)
        return messages.Done(frames=self._state.frames_done, duration_s=self._samples / SAMPLE_RATE)

    async def _turn(self) -> Turn | None:
        while True:
            await self._room()
            await self._say_interrupted()
            step = self._input.director.next(self._input.clock())
            if not isinstance(step, Wait):
                return step
            await self._input.news(step.until_s)

    async def _say_interrupted(self) -> None:
        if self._interrupts == self._input.interrupts:
            return
        self._interrupts = self._input.interrupts
        at_s = self._state.frames_done / FPS
        await self._emit(messages.Interrupted(at_s=at_s, heard=self._input.sound.heard))

    async def _window(self, session: str, batcher: Batcher, video: _Video, turn: Turn) -> None:
        """Think of one window and send its fragments, as far as they go on being wanted."""
        before = self._state
        window = self._input.sound.window(before.window_index, turn.frames, rest=not turn.speech)
        guidance, steps = self._knobs()
        task = WindowTask(window, before, self._reference, guidance, steps)
        latents, _ = await batcher.step(session, self._input.director.due_s, task)
        for first in range(0, turn.frames, FRAGMENT_FRAMES):
            if not await self._still_wanted(turn, begun=first > 0):
                return
            end = min(first + FRAGMENT_FRAMES, turn.frames)
            await self._fragment(video, turn, latents[first:end])
            self._state = before.after(latents, end)

    async def _still_wanted(self, turn: Turn, *, begun: bool) -> bool:
        await self._room()
        director, clock = self._input.director, self._input.clock
        while self._input.interrupts == self._interrupts and clock() < director.begin_s:
            await self._input.news(director.begin_s)
        if self._input.interrupts != self._interrupts:
            return False
        return not (begun and director.gives_way(turn))

    async def _fragment(self, video: _Video, turn: Turn, latents: Floats) -> None:
        frames = len(latents)
        sound, count = self._input.sound, frames * OUTPUT_SAMPLES_PER_FRAME
        pcm = sound.take(frames) if turn.speech else np.zeros(count, np.float32)
        if not turn.speech:
            sound.rest(frames)
        elif not self._input.director.over:  # the very last frame may be cut short by the sound
            pcm = np.pad(pcm, (0, count - len(pcm)))
        loop = asyncio.get_running_loop()
        drawn = video.decoder.decode(latents)
        data = await loop.run_in_executor(self._pool, video.muxer.add, drawn, pcm)
        self._samples += len(pcm)
        self._input.director.shown(turn, frames, self._input.clock())
        await self._send(frames, data, speech=turn.speech)

    async def _send(self, frames: int, data: bytes, *, speech: bool) -> None:
        first = self._state.frames_done
        event = messages.Fragment(
            index=self._index,
            first_frame=first,
            frames=frames,
            start_s=first / FPS,
            duration_s=frames / FPS,
            speech=speech,
            heard=self._input.sound.heard,
            data=data,
        )
        self._index += 1
        await self._emit(event)

    def _knobs(self) -> tuple[Guidance, int]:
        return knobs(self._pipeline, self._input.options)
