"""The avatar in a room: LiveKit's own outputs, sources and tracks; the transport is replaced."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from conftest import KEY, PORTRAIT, Service
from fada_client import AsyncClient
from helpers import RATE, chunks, run, severable, tone
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioReceiver,
    DataStreamAudioOutput,
    DataStreamAudioReceiver,
)
from livekit.agents.voice.io import AudioOutput, PlaybackFinishedEvent
from livekit.plugins.fada import FadaVideoGenerator
from livekit.plugins.fada.runner import FadaAvatarRunner, LocalAudioOutput
from room import Room
from viewer import Viewer


@asynccontextmanager
async def avatar(
    service: Service, room: Room, receiver: AudioReceiver
) -> AsyncIterator[FadaAvatarRunner]:
    async with AsyncClient(service.url, KEY) as client:
        generator = FadaVideoGenerator(client, portrait=PORTRAIT, options={"size": 128})
        options = await generator.start()
        runner = FadaAvatarRunner(room, audio_recv=receiver, video_gen=generator, options=options)
        await runner.start()
        try:
            yield runner
        finally:
            await runner.aclose()
            await generator.aclose()


async def published(room: Room) -> None:
    while len(room.local_participant.track_publications) < 2:
        await asyncio.sleep(0.01)


async def speak(output: AudioOutput, seconds: float) -> None:
    for frame in chunks(tone(seconds)):
        await output.capture_frame(frame)
    output.flush()


def loud(viewer: Viewer) -> list[float]:
    return [at_s for at_s, samples in viewer.sounds if np.abs(samples).max() > 2000]


def test_it_is_published_as_one_layer_of_h264_at_its_rate(service: Service) -> None:
    async def work() -> list[rtc.TrackPublishOptions]:
        room = Room({}, "agent").join()
        async with avatar(service, room, LocalAudioOutput(sample_rate=RATE)):
            await published(room)
        return [one.options for one in room.local_participant.track_publications.values()]

    sound, video = run(work())
    assert sound.source == rtc.TrackSource.SOURCE_MICROPHONE
    assert video.source == rtc.TrackSource.SOURCE_CAMERA
    assert video.video_codec == rtc.VideoCodec.H264 and video.simulcast is False
    assert video.video_encoding.max_bitrate == 2_000_000
    assert video.video_encoding.max_framerate == 25


def test_playback_is_reported_when_it_is_over_and_rest_is_not_playback(service: Service) -> None:
    async def work() -> None:
        room, output = Room({}, "agent").join(), LocalAudioOutput(sample_rate=RATE)
        started: list[float] = []
        finished: list[tuple[float, PlaybackFinishedEvent]] = []
        output.on("playback_started", lambda _: started.append(time.monotonic()))
        output.on("playback_finished", lambda event: finished.append((time.monotonic(), event)))
        async with avatar(service, room, output):
            await published(room)
            viewer = Viewer()
            viewer.subscribe(room.local_participant.track_publications)
            await asyncio.sleep(0.6)
            assert not started and not finished
            await speak(output, 1.01)
            await output.wait_for_playout()
            await asyncio.sleep(0.3)
            heard = loud(viewer)
            await viewer.aclose()
        ((at_s, event),) = finished
        assert event.playback_position == pytest.approx(1.01) and not event.interrupted
        assert len(started) == 1 and 0.8 < heard[-1] - heard[0] < 1.6  # on a busy machine
        # Not when the last of it was queued, but when it was heard.
        assert at_s - started[0] > 0.95

    run(work())


def test_pictures_come_evenly_also_after_an_interruption(service: Service) -> None:
    async def work() -> None:
        room, output = Room({}, "agent").join(), LocalAudioOutput(sample_rate=RATE)
        async with avatar(service, room, output):
            await published(room)
            viewer = Viewer()
            viewer.subscribe(room.local_participant.track_publications)
            await speak(output, 3.0)
            await asyncio.sleep(1.0)
            output.clear_buffer()
            await asyncio.sleep(1.5)
            cut_s = time.monotonic() - 0.9
            steps = np.diff([at_s for at_s, _ in viewer.pictures if at_s > cut_s])
            await viewer.aclose()
        assert np.median(steps) == pytest.approx(0.04, abs=0.01)

    run(work())


def test_every_clear_gets_one_answer(service: Service) -> None:
    """In the process: in the middle, before the first picture, at the very end."""

    async def work() -> list[PlaybackFinishedEvent]:
        room, output = Room({}, "agent").join(), LocalAudioOutput(sample_rate=RATE)
        finished: list[PlaybackFinishedEvent] = []
        output.on("playback_finished", finished.append)
        async with avatar(service, room, output):
            await published(room)
            output.clear_buffer()  # nothing is under way: nothing to answer
            for wait_s in (0.8, 0.0, 0.02):
                await speak(output, 2.0)
                await asyncio.sleep(wait_s)
                output.clear_buffer()
                output.clear_buffer()
                await output.wait_for_playout()
            await speak(output, 0.2)
            await output.wait_for_playout()
        return finished

    finished = run(work())
    assert [one.interrupted for one in finished] == [True, True, True, False]
    assert 0.2 < finished[0].playback_position < 0.8
    assert finished[1].playback_position == finished[2].playback_position == 0
    assert finished[3].playback_position == pytest.approx(0.2)


def test_over_the_room_every_clear_gets_one_answer(service: Service) -> None:
    async def work() -> list[tuple[str, dict[str, object]]]:
        members: dict[str, Room] = {}
        agent = Room(members, "agent").join()
        worker = Room(members, "avatar").join()
        output = DataStreamAudioOutput(
            agent, destination_identity="avatar", sample_rate=RATE, wait_playback_start=True
        )
        receiver = DataStreamAudioReceiver(worker, sender_identity="agent")
        async with avatar(service, worker, receiver):
            await published(worker)
            for wait_s in (0.8, 0.0):
                await speak(output, 2.0)
                await asyncio.sleep(wait_s)
                output.clear_buffer()
                began_s = time.monotonic()
                await output.wait_for_playout()
                assert time.monotonic() - began_s < 0.5  # LiveKit gives up after 2 s
            await speak(output, 0.3)
            await output.wait_for_playout()
        clears = [method for method, _ in worker.local_participant.calls]
        assert clears == ["lk.clear_buffer"] * 2
        calls = agent.local_participant.calls
        return [(method, json.loads(payload or "{}")) for method, payload in calls]

    calls = run(work())
    finished = [payload for method, payload in calls if method == "lk.playback_finished"]
    assert [one["interrupted"] for one in finished] == [True, True, False]
    assert finished[2]["playback_position"] == pytest.approx(0.3)
    # Speech that was cleared before it was heard never started.
    assert [method for method, _ in calls].count("lk.playback_started") == 2


def test_when_the_session_breaks_off_the_agent_is_not_left_waiting(service: Service) -> None:
    async def work() -> None:
        room, output = Room({}, "agent").join(), LocalAudioOutput(sample_rate=RATE)
        async with (
            severable(service) as (url, cut),
            avatar(Service(url, service.process), room, output),
        ):
            await published(room)
            await speak(output, 3.0)
            await asyncio.sleep(0.6)
            cut()
            event = await asyncio.wait_for(output.wait_for_playout(), 2.0)
        assert event.interrupted

    run(work())
