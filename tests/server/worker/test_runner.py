from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media.decode import MODEL_RATE, AudioBlock, DecodedSpeech
from media.fmp4 import SAMPLE_RATE
from model.audio.windows import LOG_MEL
from server.api.protocol import AnimationOptions
from server.broker.messages import Done, Fragment, Started
from server.errors import ServiceError
from server.worker.batcher import Batcher
from server.worker.checkpoint import Snapshot
from server.worker.runner import SpeechWindows, prepare, run
from tests.server.fake_pipeline import BLUE_STEP, GREEN_STEP, RED_STEP, FakePipeline
from tests.server.media_probe import Probe, probe

Events = list[Started | Fragment]


def speech_of(samples: int, block: int = 4000) -> DecodedSpeech:
    """``samples`` at 16 kHz of a ramp that says at each place how far the speech is."""

    def blocks() -> Iterator[AudioBlock]:
        for start in range(0, samples, block):
            count = min(block, samples - start)
            place = np.arange(3 * start, 3 * (start + count)) / (3 * samples)
            yield AudioBlock(place.astype(np.float32), np.zeros(count, np.float32))

    return DecodedSpeech(samples / MODEL_RATE, blocks())


def animate(
    pipelines: list[FakePipeline], speeches: list[DecodedSpeech], options: AnimationOptions
) -> list[tuple[Events, Done]]:
    """All at once over one batcher, as the worker does."""
    picture = np.zeros((48, 32, 3), np.uint8)

    async def one(n: int, batcher: Batcher, pool: ThreadPoolExecutor) -> tuple[Events, Done]:
        pipeline = pipelines[0]
        reference = pipeline.space.encode_reference(picture)
        animation = prepare(pipeline, reference, speeches[n], options, seed=3 + n)
        events: Events = []

        async def emit(event: Started | Fragment, snapshot: Snapshot) -> None:
            events.append(event)

        async def room() -> None:
            return None

        return events, await run(animation, f"s{n}", 0.0, batcher, pool, emit, room)

    async def everything() -> list[tuple[Events, Done]]:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(2) as pool:
            batcher = Batcher(pipelines[0], network)
            serving = asyncio.create_task(batcher.run())
            try:
                return await asyncio.gather(*(one(n, batcher, pool) for n in range(len(speeches))))
            finally:
                serving.cancel()

    return asyncio.run(everything())


def video(events: Events) -> Probe:
    return probe(b"".join(event.data for event in events))


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 40_000), block=st.integers(1, 9000))
def test_pieces_cover_the_sound_once_and_in_step(samples: int, block: int) -> None:
    pieces = SpeechWindows(speech_of(samples, max(block, samples // 50)), LOG_MEL)
    got = []
    while (piece := pieces.next()) is not None:
        got.append(piece)
    pcm = np.concatenate([piece.pcm for piece in got])
    expected = (np.arange(3 * samples) / (3 * samples)).astype(np.float32)
    assert np.array_equal(pcm, expected)
    assert sum(piece.window.frames for piece in got) == -(-samples // 640)
    for piece in got[:-1]:
        assert len(piece.pcm) == piece.window.frames * SAMPLE_RATE // 25


def test_a_video_from_start_to_end() -> None:
    (events, done), = animate(
        [FakePipeline("fake")], [speech_of(MODEL_RATE)], AnimationOptions(size=128)
    )  # fmt: skip
    started, fragments = events[0], events[1:]
    assert isinstance(started, Started)
    assert (started.seed, started.width, started.height, started.fps) == (3, 128, 128, 25)
    assert started.total_s == 1.0
    assert [event.index for event in fragments] == list(range(len(fragments)))  # type: ignore[union-attr]
    assert done == Done(frames=25, duration_s=1.0)
    seen = video(events)
    assert len(seen.times_s) == 25
    frames = np.arange(25)
    expected = np.stack(
        [frames // 8 * RED_STEP, np.full(25, 3 * GREEN_STEP), frames % 8 * BLUE_STEP], axis=1
    )
    assert np.abs(seen.pictures - expected).max() < 12


def test_videos_made_together_equal_those_made_alone() -> None:
    together = FakePipeline("fake")
    options = AnimationOptions(size=128)
    both = animate([together], [speech_of(30_000), speech_of(20_000)], options)
    (alone, _), = animate([FakePipeline("fake")], [speech_of(30_000)], options)  # fmt: skip
    assert [event.data for event in both[0][0]] == [event.data for event in alone]
    assert both[1][1].frames == 32


def test_the_first_failure_ends_the_video_and_is_raised_as_it_is() -> None:
    def broken() -> Iterator[AudioBlock]:
        yield from speech_of(20_000).blocks
        raise ServiceError("unsupported_media", "the audio is broken")

    with pytest.raises(ServiceError, match="the audio is broken"):
        animate([FakePipeline("fake")], [DecodedSpeech(None, broken())], AnimationOptions(size=128))


def test_a_failure_ends_the_video_even_where_a_cancellation_gets_lost() -> None:
    pipeline = FakePipeline("fake")
    picture = np.full((8, 8, 3), (0, 0, 255), np.uint8)  # its third window is poisoned
    reference = pipeline.space.encode_reference(picture)
    lost: list[asyncio.CancelledError] = []
    emitting, windows = asyncio.Event(), itertools.count(1)

    async def emit(event: Started | Fragment, snapshot: Snapshot) -> None:
        if isinstance(event, Started):
            return
        emitting.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as error:  # as some clients do when their answer comes
            if lost:
                raise
            lost.append(error)

    async def room() -> None:
        if next(windows) == 3:
            await emitting.wait()

    async def everything() -> None:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            serving = asyncio.create_task(batcher.run())
            speech, options = speech_of(4 * MODEL_RATE), AnimationOptions()
            animation = prepare(pipeline, reference, speech, options, seed=1)
            try:
                async with asyncio.timeout(20):
                    await run(animation, "s", 0.0, batcher, pool, emit, room)
            finally:
                serving.cancel()

    with pytest.raises(ArithmeticError, match="poisoned"):
        asyncio.run(everything())
    assert lost


def test_an_avatar_of_another_latent_space_is_an_invalid_option() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    pipeline.space.name = "other"
    with pytest.raises(ServiceError) as caught:
        prepare(pipeline, reference, speech_of(1000), AnimationOptions(), 0)
    assert caught.value.code == "invalid_option"


def test_options_reach_the_network_and_defaults_are_the_students() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    chosen = prepare(
        pipeline, reference, speech_of(1000), AnimationOptions(steps=9, audio_cfg=0.0), 0
    )
    assert (chosen.steps, chosen.guidance.audio, chosen.guidance.reference) == (9, 0.0, 2.0)
    plain = prepare(pipeline, reference, speech_of(1000), AnimationOptions(framing="full"), 0)
    assert (plain.steps, plain.guidance.audio) == (6, 3.0)
    assert (plain.size, plain.framing) == (512, "full")
