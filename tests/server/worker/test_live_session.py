"""A live session over a real batcher and muxer: what an interrupt drops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np

from model.audio.log_mel import LOG_MEL
from model.types import NATURAL, Behaviour, Floats, Picture
from server.api.protocol import AnimationOptions
from server.worker.batcher import Batcher
from server.worker.checkpoint import Snapshot
from server.worker.session import (
    Event,
    SpeechInterrupted,
    VideoFragment,
    VideoSession,
    VideoStarted,
)
from server.worker.speech import LiveSpeech
from tests.server.fake_pipeline import RED_STEP, FakeDecoder, FakePipeline
from tests.server.media_probe import probe
from tests.server.stream_client import pcm

Events = list[Event]
Commands = Callable[[VideoSession], None]
OPTIONS = AnimationOptions(size=128)


def play(
    commands: Commands, at: dict[int, Commands], pipeline: FakePipeline | None = None
) -> Events:
    """``commands`` at once; those of ``at`` while the fragment of that number is being sent."""
    pipeline = pipeline or FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    events: Events = []

    async def everything() -> None:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            speech = LiveSpeech(16_000, LOG_MEL, OPTIONS)
            session = VideoSession(batcher, reference, speech, seed=1, pool=pool)
            commands(session)
            async with batcher.running(), aclosing(session):
                async for event, _ in session:
                    events.append(event)
                    if isinstance(event, VideoFragment) and event.index in at:
                        at[event.index](session)

    asyncio.run(everything())
    return events


def fragments(events: Events) -> list[VideoFragment]:
    return [event for event in events if isinstance(event, VideoFragment)]


def test_an_interrupt_within_a_window_drops_its_other_half() -> None:
    def commands(session: VideoSession) -> None:
        session.push_audio(pcm(5.0))
        session.end()

    events = play(commands, {2: VideoSession.interrupt})
    place = next(i for i, e in enumerate(events) if isinstance(e, SpeechInterrupted))
    assert events[place] == SpeechInterrupted(at_s=0.48, consumed_bytes=len(pcm(5.0)))
    assert [f.speech for f in fragments(events[:place])] == [True] * 3
    settling = [f for f in fragments(events[place:]) if f.frames]
    assert [f.speech for f in settling] == [False, False]
    seen = probe(b"".join(f.data for f in events if not isinstance(f, SpeechInterrupted)))
    # Windows 0 and 1, of which half was seen, and then window 2: none was skipped or repeated.
    expected = [0] * 8 + [RED_STEP] * 4 + [2 * RED_STEP] * 8
    assert np.abs(seen.pictures[:, 0] - expected).max() < 12


def test_sound_after_an_interrupt_starts_afresh() -> None:
    def commands(session: VideoSession) -> None:
        session.push_audio(pcm(3.0))
        session.interrupt()
        session.push_audio(pcm(0.5))

    events = play(commands, {1: VideoSession.end})
    made = [f for f in fragments(events) if f.frames]
    assert sum(f.frames for f in made) == 13
    assert all(f.speech for f in made)


def test_a_face_acts_as_updated_from_the_next_window_on() -> None:
    def commands(session: VideoSession) -> None:
        session.push_audio(pcm(1.3))

    def update(session: VideoSession) -> None:
        session.update(head_motion=0.0, gaze="camera")
        session.update(state="thinking")
        session.end()

    pipeline = FakePipeline("fake")
    play(commands, {1: update}, pipeline)
    acting = Behaviour(head_motion=0.0, gaze="camera", state="thinking")
    assert pipeline.behaviours[0] == NATURAL and pipeline.behaviours[1:] == [acting] * 4


class Hooked(FakeDecoder):
    """Calls ``hook`` while it draws its first frame."""

    hook: Callable[[], None] = staticmethod(lambda: None)

    def decode(self, latents: Floats) -> Iterator[Picture]:
        for frame in super().decode(latents):
            yield frame
            self.hook()
            self.hook = lambda: None


def test_an_interrupt_while_a_fragment_is_encoded_is_reported_after_a_resume() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    events: Events = []
    snapshots: list[Snapshot] = []

    async def until(most: int, speech: LiveSpeech, snapshot: Snapshot | None) -> None:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            session = VideoSession(batcher, reference, speech, seed=1, pool=pool, snapshot=snapshot)
            async with batcher.running(), aclosing(session):
                async for event, now in session:
                    events.append(event)
                    snapshots.append(now)
                    if len(events) == most:
                        return  # as if the worker died

    speech = LiveSpeech(16_000, LOG_MEL, OPTIONS)
    speech.push_audio(pcm(3.0))
    decoder = Hooked(128, 128)
    decoder.hook = speech.interrupt
    pipeline.space.decoder = lambda *_, **__: decoder  # type: ignore[method-assign]
    asyncio.run(until(2, speech, None))
    state = snapshots[-1].speech
    resumed = LiveSpeech.restore(state, 16_000, LOG_MEL, edge=len(pcm(3.0)))
    asyncio.run(until(5, resumed, snapshots[-1]))
    kinds = [type(event) for event in events]
    assert kinds == [VideoStarted, VideoFragment, SpeechInterrupted, VideoFragment, VideoFragment]
    assert [f.speech for f in fragments(events)] == [True, False, False]
