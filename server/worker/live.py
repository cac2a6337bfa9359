"""One live session from commands to fragments.

One window is thought, drawn and sent before the next is begun, in fragments of four frames: so an
interrupt finds at most 160 ms under way. The state that goes on is the one after the last frame
that was sent, so the picture never jumps, whatever was thought of and dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from model.audio.frontend import AudioWindowSpec
from model.types import FPS, Floats, Guidance, Reference, SessionState, WindowTask, pack, unpack
from server.api.protocol import AnimationOptions
from server.broker import messages
from server.worker.batcher import Batcher
from server.worker.checkpoint import Snapshot
from server.worker.live_sound import (
    FRAGMENT_FRAMES,
    OUTPUT_SAMPLES_PER_FRAME,
    Director,
    LiveSound,
    NextWindow,
    Wait,
)
from server.worker.runner import check_reference, encode, fragment, knobs, open_video

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline, FrameDecoder

Emit = Callable[[messages.Progress, Snapshot], Awaitable[None]]
Room = Callable[[], Awaitable[None]]
Clock = Callable[[], float]
Made = Callable[[float, float], None]


class LiveInput:
    """What the client says, as it comes; `LiveSession` looks at it when it can."""

    def __init__(
        self, request: messages.LiveRequest, clock: Clock, window_spec: AudioWindowSpec
    ) -> None:
        self.clock = clock
        self.sound = LiveSound(request.sample_rate, window_spec)
        self.director = Director(self.sound, request.idle, clock())
        self.options = request.options
        self.interrupts = 0
        self._again = 0  # bytes of sound that will be heard again, and were taken in before
        self._news = asyncio.Event()

    def state(self) -> dict[str, object]:
        """What to `restore` elsewhere, as the snapshot's ``input``; without `LiveSound.state`."""
        return {
            "director": self.director.state(self.clock()),
            "at_s": time.time(),
            "options": self.options.model_dump(),
        }

    @classmethod
    def restore(
        cls,
        request: messages.LiveRequest,
        clock: Clock,
        window_spec: AudioWindowSpec,
        left: Snapshot,
        edge: int,
    ) -> LiveInput:
        """The input of a session that another worker left, which is to hear again since byte
        ``edge``."""
        arrays, facts = unpack(left.live)
        known: dict[str, Any] = facts
        state = known["input"]
        sound = LiveSound.restore(request.sample_rate, window_spec, arrays["sound"].tobytes())
        new = cls(request, clock, window_spec)
        new.sound, new._again = sound, sound.heard - edge
        new.director = Director(sound, request.idle, clock())
        new.director.resume(state["director"], time.time() - state["at_s"], clock())
        new.options = AnimationOptions.model_validate(state["options"])
        return new

    def hear(self, command: messages.LiveCommand) -> None:
        """Take one command in; returns at once."""
        if isinstance(command, messages.AudioChunk):
            fresh = command.data[self._again :]
            self._again -= len(command.data) - len(fresh)
            self.director.heard(fresh, self.clock())
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


@dataclass(frozen=True)
class _PartialWindow:
    """A window that was thought of, and how many of its frames were sent.

    Who goes on for another worker in its midst shows the rest of it, not a new thought.
    """

    turn: NextWindow
    latents: Floats
    before: SessionState
    sent: int

    @property
    def state(self) -> SessionState:
        """The session's after what was sent."""
        return self.before.after(self.latents, self.sent) if self.sent else self.before


class LiveSession:
    """``emit`` sends an event; ``room`` returns when the reader has read all that was sent.

    ``made`` is told how many seconds were worked for how many seconds of video.
    """

    def __init__(
        self,
        pipeline: AvatarPipeline,
        reference: Reference,
        request: messages.LiveRequest,
        heard: LiveInput,
        emit: Emit,
        room: Room,
        pool: Executor,
        made: Made,
        left: Snapshot | None = None,
    ) -> None:
        """``heard`` is of ``left``, if there is one.

        Raises `ServiceError` ``invalid_option`` for an avatar of another latent space.
        """
        check_reference(pipeline, reference)
        self._pipeline, self._reference, self._request = pipeline, reference, request
        self._input, self._emit, self._room, self._pool = heard, emit, room, pool
        self._left, self._made = left, made
        self._worked_s = 0.0  # since the last fragment
        self._state: SessionState = pipeline.start(request.seed) if left is None else left.state
        self._scene: _PartialWindow | None = None
        self._interrupts = 0
        if left is not None:
            self._go_on(left)

    async def run(self, session: str, batcher: Batcher) -> messages.Done:
        """The whole session, or the rest of it; returns when its last fragment was emitted."""
        if self._left is not None and self._left.closed:
            return self._done(self._left)
        options = self._request.options
        decoder, muxer, started = await open_video(
            self._pipeline,
            self._reference,
            options.size,
            options.framing,
            self._request.seed,
            None,
            self._pool,
            self._left,
        )
        video = _Video(decoder, muxer)
        if self._left is None:
            await self._emit(started, self._now(video))
        if self._scene is not None:
            await self._show(video, self._scene)
        while (turn := await self._turn(video)) is not None:
            await self._show(video, await self._denoise(session, batcher, turn))
        now = self._now(video)
        loop = asyncio.get_running_loop()
        rest = await loop.run_in_executor(self._pool, muxer.close)
        if rest:
            event = fragment(now.video.sequence, now.state.frames_done, 0, rest)
            await self._emit(event, replace(now, closed=True))
        return self._done(now)

    async def _turn(self, video: _Video) -> NextWindow | None:
        while True:
            await self._room()
            await self._say_interrupted(video)
            step = self._input.director.next(self._input.clock())
            if not isinstance(step, Wait):
                return step
            await self._input.news(step.until_s)

    async def _say_interrupted(self, video: _Video) -> None:
        if self._interrupts == self._input.interrupts:
            return
        self._interrupts = self._input.interrupts
        at_s = self._state.frames_done / FPS
        event = messages.Interrupted(at_s=at_s, consumed_bytes=self._input.sound.heard)
        await self._emit(event, self._now(video))

    async def _denoise(self, session: str, batcher: Batcher, turn: NextWindow) -> _PartialWindow:
        before = self._state
        began_s, sound = self._input.clock(), self._input.sound
        plan = sound.planned(before.window_index, turn.frames, rest=not turn.speech)
        # To hear may take a network, too.
        window = await asyncio.get_running_loop().run_in_executor(self._pool, plan)
        guidance, steps = self._knobs()
        task = WindowTask(window, before, self._reference, guidance, steps)
        latents, _ = await batcher.step(session, self._input.director.due_s, task)
        self._worked_s = self._input.clock() - began_s
        return _PartialWindow(turn, latents, before, 0)

    async def _show(self, video: _Video, scene: _PartialWindow) -> None:
        """Send a window's fragments, as far as they go on being wanted."""
        turn = scene.turn
        for first in range(scene.sent, turn.frames, FRAGMENT_FRAMES):
            if not await self._still_wanted(turn, begun=first > 0):
                break
            end = min(first + FRAGMENT_FRAMES, turn.frames)
            first_frame, began_s = self._state.frames_done, self._input.clock()
            data = await self._encode(video, turn, scene.latents[first:end])
            scene = _PartialWindow(turn, scene.latents, scene.before, end)
            self._state = scene.state
            self._scene = scene if end < turn.frames else None
            await self._send(video, first_frame, end - first, data, speech=turn.speech)
            self._worked_s += self._input.clock() - began_s
            if end == turn.frames:
                self._made(self._worked_s, turn.frames / FPS)
        self._scene = None

    async def _still_wanted(self, turn: NextWindow, *, begun: bool) -> bool:
        await self._room()
        director, clock = self._input.director, self._input.clock
        while self._input.interrupts == self._interrupts:
            if begun and director.gives_way(turn):
                return False
            begin_s = director.begin_s(speech=turn.speech)
            if clock() >= begin_s:
                return True
            await self._input.news(begin_s)
        return False

    async def _encode(self, video: _Video, turn: NextWindow, latents: Floats) -> bytes:
        frames = len(latents)
        sound, count = self._input.sound, frames * OUTPUT_SAMPLES_PER_FRAME
        pcm = sound.take(frames) if turn.speech else np.zeros(count, np.float32)
        if not turn.speech:
            sound.rest(frames)
        elif not self._input.director.over:  # the very last frame may be cut short by the sound
            pcm = np.pad(pcm, (0, count - len(pcm)))
        # Before an interrupt can come: it must know whether there is a face to settle.
        self._input.director.shown(turn, frames, self._input.clock())
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, encode, video.decoder, video.muxer, latents, pcm
        )

    async def _send(
        self, video: _Video, first_frame: int, frames: int, data: bytes, *, speech: bool
    ) -> None:
        now = self._now(video)
        event = fragment(now.video.sequence - 1, first_frame, frames, data)
        facts = {"speech": speech, "consumed_bytes": self._input.sound.heard}
        await self._emit(event.model_copy(update=facts), now)

    def _now(self, video: _Video) -> Snapshot:
        """Where the session stands; between two fragments, when nothing is being encoded."""
        scene = self._scene
        arrays: dict[str, Any] = {"sound": np.frombuffer(self._input.sound.state(), np.uint8)}
        facts: dict[str, object] = {
            "input": self._input.state(),
            "owes": self._input.interrupts != self._interrupts,
            "turn": None,
        }
        if scene is not None:
            arrays["latents"], arrays["before"] = scene.latents, _bytes(scene.before)
            facts["turn"] = [scene.turn.speech, scene.turn.frames, scene.sent]
        return Snapshot(self._state, video.muxer.state(), live=pack(arrays, facts))

    def _go_on(self, left: Snapshot) -> None:
        arrays, facts = unpack(left.live)
        known: dict[str, Any] = facts
        if known["owes"]:  # the client still is to be told of an interrupt
            self._input.interrupts += 1
        if known["turn"] is not None:
            speech, frames, sent = known["turn"]
            before = SessionState.from_bytes(arrays["before"].tobytes())
            latents = arrays["latents"].astype(np.float32)
            self._scene = _PartialWindow(NextWindow(speech, frames), latents, before, sent)

    def _knobs(self) -> tuple[Guidance, int]:
        return knobs(self._pipeline, self._input.options)

    def _done(self, now: Snapshot) -> messages.Done:
        samples = now.video.samples_in
        return messages.Done(frames=now.state.frames_done, duration_s=samples / SAMPLE_RATE)


def _bytes(state: SessionState) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(state.to_bytes(), np.uint8)
