"""A live session over a real batcher and muxer: what an interrupt in its midst undoes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from model.audio.windows import LOG_MEL
from model.types import Floats, Picture
from server.api.protocol import AnimationOptions
from server.broker import messages
from server.worker.batcher import Batcher
from server.worker.checkpoint import Snapshot
from server.worker.live import LiveInput, LiveSession
from tests.server.fake_pipeline import RED_STEP, FakeDecoder, FakePipeline
from tests.server.media_probe import probe
from tests.server.stream_client import pcm

Events = list[messages.Progress]


def made(took_s: float, media_s: float) -> None:
    """Nobody minds how long it takes."""


def play(commands: list[messages.LiveCommand], at: dict[int, messages.LiveCommand]) -> Events:
    """``commands`` at once; those of ``at`` while the fragment of that number is being sent."""
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    request = messages.LiveRequest(
        options=AnimationOptions(size=128), model="fake", seed=1, sample_rate=16_000, idle=False
    )
    events: Events = []

    async def session() -> None:
        heard = LiveInput(request, time.monotonic, LOG_MEL)

        async def emit(event: messages.Progress, snapshot: Snapshot) -> None:
            events.append(event)
            if isinstance(event, messages.Fragment) and event.index in at:
                heard.hear(at[event.index])

        async def room() -> None:
            return None

        for command in commands:
            heard.hear(command)
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            serving = asyncio.create_task(batcher.run())
            live = LiveSession(pipeline, reference, request, heard, emit, room, pool, made)
            try:
                await live.run("s", batcher)
            finally:
                serving.cancel()

    asyncio.run(session())
    return events


def fragments(events: Events) -> list[messages.Fragment]:
    return [event for event in events if isinstance(event, messages.Fragment)]


def test_an_interrupt_within_a_window_drops_its_other_half() -> None:
    commands = [messages.AudioChunk(data=pcm(5.0)), messages.End()]
    events = play(commands, {2: messages.Interrupt()})
    place = next(i for i, e in enumerate(events) if isinstance(e, messages.Interrupted))
    assert events[place] == messages.Interrupted(at_s=0.48, consumed_bytes=len(pcm(5.0)))
    assert [f.speech for f in fragments(events[:place])] == [True] * 3
    settling = [f for f in fragments(events[place:]) if f.frames]
    assert [f.speech for f in settling] == [False, False]
    seen = probe(b"".join(f.data for f in events if not isinstance(f, messages.Interrupted)))
    # Windows 0 and 1, of which half was seen, and then window 2: none was skipped or repeated.
    expected = [0] * 8 + [RED_STEP] * 4 + [2 * RED_STEP] * 8
    assert np.abs(seen.pictures[:, 0] - expected).max() < 12


def test_sound_after_an_interrupt_starts_afresh() -> None:
    events = play(
        [
            messages.AudioChunk(data=pcm(3.0)),
            messages.Interrupt(),
            messages.AudioChunk(data=pcm(0.5)),
        ],
        {1: messages.End()},
    )
    made = [f for f in fragments(events) if f.frames]
    assert sum(f.frames for f in made) == 13
    assert all(f.speech for f in made)


class Hooked(FakeDecoder):
    """Calls ``hook`` while it draws its first frame."""

    hook: Callable[[], None] = staticmethod(lambda: None)

    def decode(self, latents: Floats) -> Iterator[Picture]:
        for frame in super().decode(latents):
            yield frame
            self.hook()
            self.hook = lambda: None


def test_an_interrupt_while_a_fragment_is_encoded_is_told_by_who_goes_on() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    request = messages.LiveRequest(
        options=AnimationOptions(size=128), model="fake", seed=1, sample_rate=16_000, idle=False
    )
    events: Events = []
    snapshots: list[Snapshot] = []

    async def session(heard: LiveInput, left: Snapshot | None, most: int) -> None:
        async def emit(event: messages.Progress, snapshot: Snapshot) -> None:
            events.append(event)
            snapshots.append(snapshot)
            if len(events) == most:
                raise ConnectionError("the worker dies")

        async def room() -> None:
            return None

        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            serving = asyncio.create_task(batcher.run())
            live = LiveSession(pipeline, reference, request, heard, emit, room, pool, made, left)
            try:
                await live.run("s", batcher)
            except ConnectionError:
                return
            finally:
                serving.cancel()

    heard = LiveInput(request, time.monotonic, LOG_MEL)
    heard.hear(messages.AudioChunk(data=pcm(3.0)))
    decoder = Hooked(128, 128)
    decoder.hook = lambda: heard.hear(messages.Interrupt())
    pipeline.space.decoder = lambda *_: decoder  # type: ignore[method-assign]
    asyncio.run(session(heard, None, 2))
    left = snapshots[-1]
    again = LiveInput.restore(request, time.monotonic, LOG_MEL, left, len(pcm(3.0)))
    asyncio.run(session(again, left, 5))
    kinds = [event.type for event in events]
    assert kinds == ["started", "fragment", "interrupted", "fragment", "fragment"]
    assert [f.speech for f in fragments(events)] == [True, False, False]
