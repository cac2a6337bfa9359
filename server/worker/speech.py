"""The source of a session's speech: a whole file, or a live stream.

Both give a `VideoSession` its next window, and the sound of the frames that are drawn.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from media.decode import DecodedSpeech
from media.fmp4 import SAMPLE_RATE
from model.audio.frontend import AudioWindowSpec
from model.audio.stream import SpeechStream
from model.types import FPS, SAMPLES_PER_FRAME, Floats, Window, pack, unpack
from server.api.protocol import AnimationOptions, FaceState
from server.errors import ServiceError
from server.worker.live_planner import FRAGMENT_FRAMES, LivePlanner, NextWindow, Wait

Clock = Callable[[], float]

_OUTPUT_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@dataclass(frozen=True)
class PlannedWindow:
    """The window to denoise next: of ``speech`` or of rest, wanted by ``deadline_s``.

    Work on it began at ``began_s`` of ``time.monotonic``.
    """

    speech: bool
    window: Window
    deadline_s: float
    began_s: float


class Interruption:
    """In a window's place: the speech before this was interrupted."""


@dataclass(frozen=True)
class SpeechWindow:
    """A window with the sound of its frames, at the output's sample rate."""

    window: Window
    pcm: Floats


class FileSpeech:
    """A complete speech; decodes no more of it than the next window needs.

    One window is one fragment. ``deadline_s`` is when the first frame is wanted, and each window by
    its media time after it. ``first_window``: what lies before it is decoded, but not cut.
    """

    consumed_bytes = 0

    def __init__(
        self,
        speech: DecodedSpeech,
        window_spec: AudioWindowSpec,
        options: AnimationOptions,
        *,
        first_window: int = 0,
        deadline_s: float = 0.0,
    ) -> None:
        self.options = options
        self.face_state: FaceState = "idle"
        self.total_s = speech.duration_s
        self.warnings = speech.warnings
        self.fragment_frames = window_spec.hop
        self._deadline_s, self._frames = deadline_s, 0
        self._blocks, self._ended = speech.blocks, False
        self._stream = SpeechStream(window_spec, output_rate=SAMPLE_RATE)
        # Begun so early, the stream knows the whole past of the first window that is wanted.
        self._warmup = min(first_window, window_spec.warmup_windows)
        self._skip = (first_window - self._warmup) * window_spec.hop * SAMPLES_PER_FRAME
        self._skip_output = first_window * window_spec.hop * _OUTPUT_SAMPLES_PER_FRAME
        self._first: SpeechWindow | None = None
        self._undrawn: deque[Floats] = deque()  # sound of the windows that were planned

    @classmethod
    def open(
        cls,
        speech: DecodedSpeech,
        window_spec: AudioWindowSpec,
        options: AnimationOptions,
        *,
        first_window: int = 0,
        deadline_s: float = 0.0,
    ) -> FileSpeech:
        """With the first window decoded, so that a bad file shows at once; blocks for milliseconds.

        Raises `ServiceError` ``empty_audio``, and what the audio decoder raises.
        """
        opened = cls(speech, window_spec, options, first_window=first_window, deadline_s=deadline_s)
        opened._first = opened.decode_next(first_window)
        if opened._first is None and first_window == 0:
            raise ServiceError("empty_audio", "the audio holds no samples")
        return opened

    async def next_window(self, index: int) -> PlannedWindow | Interruption | None:
        """Window ``index``, the one after that of the last call; ``None`` after the last."""
        began_s = time.monotonic()
        piece, self._first = self._first, None
        if piece is None:
            piece = await asyncio.to_thread(self.decode_next, index)
        if piece is None:
            return None
        self._undrawn.append(piece.pcm)
        deadline_s = self._deadline_s + self._frames / FPS
        self._frames += piece.window.frames
        return PlannedWindow(True, piece.window, deadline_s, began_s)

    async def still_wanted(self, speech: bool, *, begun: bool) -> bool:
        """Always."""
        return True

    def take(self, frames: int, *, speech: bool) -> Floats:
        """The sound of the next window; of the last one, all that is left."""
        return self._undrawn.popleft()

    def state(self) -> bytes:
        """Nothing: the file is decoded again."""
        return b""

    def decode_next(self, index: int) -> SpeechWindow | None:
        """``None`` after the last. Blocks. Raises what the decoder raises."""
        stream, hop = self._stream, self.fragment_frames
        while not self._ended and not self._window_is_whole():
            block = next(self._blocks, None)
            if block is None:
                stream.finish()
                self._ended = True
            else:
                model, output = block.model[self._skip :], block.output[self._skip_output :]
                self._skip -= len(block.model) - len(model)
                self._skip_output -= len(block.output) - len(output)
                stream.push(model, output)
            while self._warmup and stream.rows and not stream.missing:
                stream.skip(min(hop, stream.rows))
                self._warmup -= 1
        if not stream.rows:
            return None
        frames = min(hop, stream.rows)
        window = stream.window(index, frames)
        return SpeechWindow(window, stream.take(frames))

    def _window_is_whole(self) -> bool:
        wanted = self.fragment_frames * _OUTPUT_SAMPLES_PER_FRAME
        return not self._stream.missing and self._stream.output_samples >= wanted


class LiveSpeech:
    """A conversation at ``rate`` samples a second, as it is pushed.

    Windows are denoised and drawn one by one, in fragments of four frames, so an interrupt finds at
    most 160 ms under way. With ``idle`` windows of rest fill the pauses, in real time.
    """

    total_s = None
    warnings = ()
    fragment_frames = FRAGMENT_FRAMES

    def __init__(
        self,
        rate: int,
        window_spec: AudioWindowSpec,
        options: AnimationOptions,
        *,
        idle: bool = False,
        clock: Clock = time.monotonic,
        pool: Executor | None = None,
    ) -> None:
        """``pool`` computes features, off the event loop; ``None``: the loop's own."""
        self.options = options
        self.face_state: FaceState = "idle"
        self._clock, self._pool = clock, pool
        self._stream = SpeechStream(window_spec, rate, output_rate=SAMPLE_RATE)
        self._planner = LivePlanner(self._stream, idle, clock())
        self._interrupted = False  # and not yet reported
        self._replayed = 0  # bytes that will be pushed again although they were consumed before
        self._changed = asyncio.Event()

    @classmethod
    def restore(
        cls,
        state: bytes,
        rate: int,
        window_spec: AudioWindowSpec,
        *,
        edge: int,
        idle: bool = False,
        clock: Clock = time.monotonic,
        pool: Executor | None = None,
    ) -> LiveSpeech:
        """The speech that gave ``state``; its sound since byte ``edge`` will be pushed again."""
        arrays, facts = unpack(state)
        known: dict[str, Any] = facts
        options = AnimationOptions.model_validate(known["options"])
        new = cls(rate, window_spec, options, idle=idle, clock=clock, pool=pool)
        new._stream = SpeechStream.restore(
            arrays["stream"].tobytes(), window_spec, rate, output_rate=SAMPLE_RATE
        )
        new._planner = LivePlanner(new._stream, idle, clock())
        new._planner.resume(known["planner"], time.time() - known["at_s"], clock())
        new._interrupted = known["interrupted"]
        new.face_state = known.get("face_state", "idle")
        new._replayed = new._stream.consumed_bytes - edge
        return new

    def state(self) -> bytes:
        """What to `restore` elsewhere; without sound that waits to be resampled."""
        stream = np.frombuffer(self._stream.state(), np.uint8)
        facts: dict[str, object] = {
            "planner": self._planner.state(self._clock()),
            "at_s": time.time(),
            "options": self.options.model_dump(exclude_defaults=True),
            "interrupted": self._interrupted,
            "face_state": self.face_state,
        }
        return pack({"stream": stream}, facts)

    def push_audio(self, pcm: bytes) -> None:
        """See `VideoSession`."""
        new = pcm[self._replayed :]
        self._replayed -= len(pcm) - len(new)
        self._planner.push_audio(new, self._clock())
        self._changed.set()

    def interrupt(self) -> None:
        """See `VideoSession`."""
        self._planner.interrupt()
        self._interrupted = True
        self._changed.set()

    def update(self, *, state: FaceState | None = None, **options: object) -> None:
        """See `VideoSession`."""
        self.face_state = state or self.face_state
        self.options = self.options.model_copy(update=options)
        self._changed.set()

    def end(self) -> None:
        """See `VideoSession`."""
        self._planner.end()
        self._changed.set()

    @property
    def consumed_bytes(self) -> int:
        """Bytes of sound that are no longer pending: used in windows, or dropped."""
        return self._stream.consumed_bytes

    @property
    def late_s(self) -> float:
        """How far the speech that is shown is behind real time; 0 or less while it is not."""
        return self._planner.late_s(self._clock())

    async def next_window(self, index: int) -> PlannedWindow | Interruption | None:
        """Waits until there is something to make; ``None`` when all is shown."""
        while True:
            if self._interrupted:
                self._interrupted = False
                return Interruption()
            step = self._planner.next(self._clock())
            if step is None:
                return None
            if isinstance(step, NextWindow):
                return await self._planned(step, index)
            await self._wait(step)

    async def _planned(self, step: NextWindow, index: int) -> PlannedWindow:
        began_s = time.monotonic()
        compute = self._stream.planned(index, step.frames, rest=not step.speech)
        # The features may take a network.
        window = await asyncio.get_running_loop().run_in_executor(self._pool, compute)
        return PlannedWindow(step.speech, window, self._planner.due_s, began_s)

    async def still_wanted(self, speech: bool, *, begun: bool) -> bool:
        """Whether to draw the next fragment of a window, once it is time for it.

        An interrupt ends any window; a complete window of speech ends one of rest.
        """
        while not self._interrupted:
            if begun and self._planner.yields_to_speech(speech=speech):
                return False
            begin_s = self._planner.begin_s(speech=speech)
            if self._clock() >= begin_s:
                return True
            await self._wait(Wait(begin_s))
        return False

    def take(self, frames: int, *, speech: bool) -> Floats:
        """The sound of the next ``frames`` frames, which now are shown."""
        count = frames * _OUTPUT_SAMPLES_PER_FRAME
        pcm: Floats = np.zeros(count, np.float32)
        if not speech:
            self._stream.rest(frames)
        else:
            pcm = self._stream.take(frames)
            if not self._planner.finished:  # the very last frame may be cut short by the sound
                pcm = np.pad(pcm, (0, count - len(pcm)))
        # Before an interrupt can come: it must know whether there is a face to settle.
        self._planner.shown(frames, self._clock(), speech=speech)
        return pcm

    async def _wait(self, wait: Wait) -> None:
        """For the next change, at most until ``wait`` ends."""
        self._changed.clear()
        timeout_s = None if wait.until_s is None else max(0.0, wait.until_s - self._clock())
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return
