"""Sessions whose speech is complete, over a real batcher and muxer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media.decode import MODEL_RATE, AudioBlock, DecodedSpeech
from media.fmp4 import SAMPLE_RATE
from model.audio.log_mel import LOG_MEL
from model.types import WindowTask
from server.api.protocol import AnimationOptions
from server.errors import ServiceError
from server.worker.batcher import Batcher, Result
from server.worker.pipelines import check_reference, sampling_options
from server.worker.session import (
    VideoFragment,
    VideoSession,
    VideoStarted,
)
from server.worker.speech import FileSpeech
from tests.server.fake_pipeline import BLUE_STEP, GREEN_STEP, RED_STEP, FakePipeline
from tests.server.media_probe import Probe, probe

Events = list[VideoStarted | VideoFragment]


def speech_of(samples: int, block: int = 4000) -> DecodedSpeech:
    """``samples`` at 16 kHz of a ramp that shows the position in the speech."""

    def blocks() -> Iterator[AudioBlock]:
        for start in range(0, samples, block):
            count = min(block, samples - start)
            place = np.arange(3 * start, 3 * (start + count)) / (3 * samples)
            yield AudioBlock(place.astype(np.float32), np.zeros(count, np.float32))

    return DecodedSpeech(samples / MODEL_RATE, blocks())


def animate(
    pipelines: list[FakePipeline],
    speeches: list[DecodedSpeech],
    options: AnimationOptions,
    *,
    raw: bool = False,
    draw_every: int = 1,
) -> list[tuple[Events, VideoSession]]:
    """Make all at once over one batcher, as the worker does."""
    picture = np.zeros((48, 32, 3), np.uint8)

    async def one(
        n: int, batcher: Batcher, pool: ThreadPoolExecutor
    ) -> tuple[Events, VideoSession]:
        pipeline = pipelines[0]
        reference = pipeline.space.encode_reference(picture)
        speech = FileSpeech.open(speeches[n], LOG_MEL, options)
        session = VideoSession(
            batcher, reference, speech, seed=3 + n, pool=pool, name=f"s{n}", raw=raw
        )
        session.draw_every = draw_every
        events: Events = []
        async with aclosing(session):
            async for event, _ in session:
                assert isinstance(event, VideoStarted | VideoFragment)
                events.append(event)
        return events, session

    async def everything() -> list[tuple[Events, VideoSession]]:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(2) as pool:
            batcher = Batcher(pipelines[0], network)
            async with batcher.running():
                return await asyncio.gather(*(one(n, batcher, pool) for n in range(len(speeches))))

    return asyncio.run(everything())


def video(events: Events) -> Probe:
    return probe(b"".join(event.data for event in events))


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 40_000), block=st.integers(1, 9000))
def test_pieces_cover_the_sound_once_and_in_step(samples: int, block: int) -> None:
    speech = speech_of(samples, max(block, samples // 50))
    pieces = FileSpeech(speech, LOG_MEL, AnimationOptions())
    got = []
    while (piece := pieces.decode_next(len(got))) is not None:
        got.append(piece)
    pcm = np.concatenate([piece.pcm for piece in got])
    expected = (np.arange(3 * samples) / (3 * samples)).astype(np.float32)
    assert np.array_equal(pcm, expected)
    assert sum(piece.window.frames for piece in got) == -(-samples // 640)
    for piece in got[:-1]:
        assert len(piece.pcm) == piece.window.frames * SAMPLE_RATE // 25


def test_a_video_has_all_its_events_and_frames() -> None:
    (events, session), = animate(
        [FakePipeline("fake")], [speech_of(MODEL_RATE)], AnimationOptions(size=128)
    )  # fmt: skip
    started, fragments = events[0], events[1:]
    assert isinstance(started, VideoStarted)
    assert (started.seed, started.width, started.height) == (3, 128, 128)
    assert started.total_s == 1.0
    assert [event.index for event in fragments] == list(range(len(fragments)))  # type: ignore[union-attr]
    assert (session.frames, session.duration_s) == (25, 1.0)
    seen = video(events)
    assert len(seen.times_s) == 25
    frames = np.arange(25)
    expected = np.stack(
        [frames // 8 * RED_STEP, np.full(25, 3 * GREEN_STEP), frames % 8 * BLUE_STEP], axis=1
    )
    assert np.abs(seen.pictures - expected).max() < 12


def test_batched_videos_equal_those_made_alone() -> None:
    together = FakePipeline("fake")
    options = AnimationOptions(size=128)
    both = animate([together], [speech_of(30_000), speech_of(20_000)], options)
    (alone, _), = animate([FakePipeline("fake")], [speech_of(30_000)], options)  # fmt: skip
    assert [event.data for event in both[0][0]] == [event.data for event in alone]
    assert both[1][1].frames == 32


def test_the_first_failure_ends_the_video_and_is_raised_unchanged() -> None:
    def broken() -> Iterator[AudioBlock]:
        yield from speech_of(20_000).blocks
        raise ServiceError("unsupported_media", "the audio is broken")

    with pytest.raises(ServiceError, match="the audio is broken"):
        animate([FakePipeline("fake")], [DecodedSpeech(None, broken())], AnimationOptions(size=128))


def test_a_poisoned_window_ends_the_video_after_those_before_it() -> None:
    pipeline = FakePipeline("fake")
    picture = np.full((8, 8, 3), (0, 0, 255), np.uint8)  # its third window is poisoned
    reference = pipeline.space.encode_reference(picture)
    made: list[int] = []

    async def everything() -> None:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            speech = FileSpeech.open(speech_of(4 * MODEL_RATE), LOG_MEL, AnimationOptions(size=128))
            session = VideoSession(batcher, reference, speech, seed=1, pool=pool)
            async with asyncio.timeout(20), batcher.running(), aclosing(session):
                async for event, _ in session:
                    if isinstance(event, VideoFragment):
                        made.append(event.index)

    with pytest.raises(ArithmeticError, match="poisoned"):
        asyncio.run(everything())
    assert made == [0, 1]


def test_a_failing_caller_ends_the_video_despite_a_swallowed_cancellation() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    lost: list[asyncio.CancelledError] = []

    class Losing(Batcher):
        async def step(self, session: str, deadline_s: float, task: WindowTask) -> Result:
            result = await super().step(session, deadline_s, task)
            if task.window.index == 2:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError as error:  # as some clients do when an answer comes
                    lost.append(error)
                await asyncio.sleep(3600)
            return result

    async def everything() -> None:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Losing(pipeline, network)
            speech = FileSpeech.open(speech_of(4 * MODEL_RATE), LOG_MEL, AnimationOptions(size=128))
            session = VideoSession(batcher, reference, speech, seed=1, pool=pool)
            async with asyncio.timeout(20), batcher.running(), aclosing(session):
                async for event, _ in session:
                    if isinstance(event, VideoFragment) and event.index == 1:
                        await asyncio.sleep(0.1)  # the third window is in the network by then
                        raise ArithmeticError("poisoned")
            assert len(asyncio.all_tasks()) == 1

    with pytest.raises(ArithmeticError, match="poisoned"):
        asyncio.run(everything())
    assert lost


def test_a_files_windows_are_denoised_while_its_reader_waits() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))

    async def everything() -> None:
        with ThreadPoolExecutor(1) as network, ThreadPoolExecutor(1) as pool:
            batcher = Batcher(pipeline, network)
            speech = FileSpeech.open(speech_of(4 * MODEL_RATE), LOG_MEL, AnimationOptions(size=128))
            session = VideoSession(batcher, reference, speech, seed=1, pool=pool)
            async with batcher.running(), aclosing(session):
                for _ in range(3):  # its start and two fragments
                    await anext(session)
                for _ in range(200):
                    await asyncio.sleep(0.005)
                # Two are drawn; one waits to be drawn, one for its place.
                assert len(pipeline.batches) == 4

    asyncio.run(everything())


def test_raw_gives_the_frames_that_are_otherwise_encoded() -> None:
    options, samples = AnimationOptions(size=128), 3 * MODEL_RATE + 100
    raw, session = animate([FakePipeline("fake")], [speech_of(samples)], options, raw=True)[0]
    encoded, other = animate([FakePipeline("fake")], [speech_of(samples)], options)[0]
    assert (session.frames, session.duration_s) == (other.frames, other.duration_s)
    fragments = [event for event in raw if isinstance(event, VideoFragment)]
    assert all(event.data == b"" for event in raw)
    pictures = np.concatenate([f.pictures for f in fragments if f.pictures is not None])
    assert pictures.shape == (76, 128, 128, 3)
    colours = pictures[:, 0, 0].astype(float)
    assert np.array_equal(pictures, np.broadcast_to(pictures[:, :1, :1], pictures.shape))
    assert np.abs(video(encoded).pictures - colours).max() < 12
    pcm = np.concatenate([f.pcm for f in fragments if f.pcm is not None])
    assert len(pcm) == 3 * samples


@pytest.mark.parametrize("samples", [2 * MODEL_RATE, 2 * MODEL_RATE + 700])
def test_at_half_the_frame_rate_every_other_frame_repeats_the_one_before(samples: int) -> None:
    options = AnimationOptions(size=128)
    whole, half = (
        animate([FakePipeline("fake")], [speech_of(samples)], options, draw_every=n)[0][0]
        for n in (1, 2)
    )
    drawn, shown = video(whole), video(half)
    assert shown.times_s == drawn.times_s and len(shown.pictures) == len(drawn.pictures)
    first = np.arange(len(drawn.pictures)) // 2 * 2
    assert np.abs(shown.pictures - drawn.pictures[first]).max() < 12
    assert np.array_equal(shown.sound, drawn.sound)


def test_a_file_takes_no_live_commands() -> None:
    options = AnimationOptions(size=128)
    session = animate([FakePipeline("fake")], [speech_of(1000)], options)[0][1]
    for command in (lambda: session.push_audio(b""), session.interrupt, session.end):
        with pytest.raises(ValueError, match="expected live speech"):
            command()


def test_an_avatar_of_another_latent_space_is_an_invalid_option() -> None:
    pipeline = FakePipeline("fake")
    reference = pipeline.space.encode_reference(np.zeros((48, 32, 3), np.uint8))
    pipeline.space.name = "other"
    with pytest.raises(ServiceError) as caught:
        check_reference(pipeline, reference)
    assert caught.value.code == "invalid_option"


def test_options_reach_the_network_and_defaults_are_the_students() -> None:
    pipeline = FakePipeline("fake")
    guidance, steps = sampling_options(pipeline, AnimationOptions(steps=9, audio_cfg=0.0))
    assert (steps, guidance.audio, guidance.reference) == (9, 0.0, 2.0)
    guidance, steps = sampling_options(pipeline, AnimationOptions(framing="full"))
    assert (steps, guidance.audio) == (6, 3.0)
    speech = FileSpeech.open(speech_of(1000), LOG_MEL, AnimationOptions(framing="full"))
    assert (speech.options.size, speech.options.framing) == (512, "full")
