"""The service in a pipeline, by Pipecat's own `run_test`, over the real FADA service."""

from __future__ import annotations

import io
import re
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import KEY, Service
from fada_client import AsyncStream
from helpers import (
    PICTURE,
    RATE,
    ended,
    heard,
    level,
    noise,
    reply,
    run,
    service_of,
    sounds,
    watch,
    watched,
)
from PIL import Image
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    MetricsFrame,
    OutputImageRawFrame,
    ServiceUpdateSettingsFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.utils.errors import ErrorCategory
from pipecat_fada import FadaVideoService, FadaVideoSettings
from pipecat_fada.session import AvatarSession


@pytest.fixture(autouse=True)
def closes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AvatarSession]]:
    """Sessions that were left; each test leaves its own once, if it had one."""
    left: list[AvatarSession] = []
    close = AvatarSession.close

    async def closing(self: AvatarSession) -> None:
        left.append(self)
        await close(self)

    monkeypatch.setattr(AvatarSession, "close", closing)
    yield left
    assert len(left) <= 1


def test_a_reply_comes_whole_each_sound_behind_its_picture(
    service: Service, closes: list[AvatarSession]
) -> None:
    speech = noise(1.01)  # 25 pictures and a quarter
    seen = run(watch(service_of(service), reply(speech)))
    assert re.fullmatch(r"V*SV*(VA){26}EV*", seen.letters)
    assert np.array_equal(seen.sound, speech)
    pictures = seen.of(OutputImageRawFrame)
    assert all(one.sync_with_audio and one.size == (128, 128) for one in pictures)
    assert all(len(one.image) == 128 * 128 * 3 and one.format == "RGB" for one in pictures)
    assert {one.context_id for one in seen.of(TTSAudioRawFrame)} == {"a"}
    ttfb = [data for one in seen.of(MetricsFrame) for data in one.data]
    assert [type(one) for one in ttfb if one.value] == [TTFBMetricsData]
    assert 0 < ttfb[-1].value < 10
    assert len(closes) == 1 and not seen.up


def test_frames_between_sounds_keep_their_places(service: Service) -> None:
    def text(words: str) -> Frame:
        return TTSTextFrame(words, text_type="word")

    first, second = noise(10 * PICTURE / RATE, 1), noise(0.3, 2)
    frames = [
        TTSStartedFrame(),
        *sounds(first),
        text("after ten"),
        *sounds(second),
        TTSStoppedFrame(),
        *reply(noise(0.2)),
        text("after all"),
    ]
    seen = run(watch(service_of(service), frames))
    # The reply's first picture may be rest: the service begins when a window is there.
    assert re.fullmatch("V*SV*(VA){10}tV*(VA){8}ESV*(VA){5}EtV*", seen.letters)
    assert np.array_equal(seen.sound[: len(first)], first)


def test_an_interruption_drops_the_old_reply_and_the_new_one_is_whole(service: Service) -> None:
    old, new = level(6, 1000), level(0.5, -1000)
    seen = run(
        watch(
            service_of(service),
            reply(old),
            (heard(12), [InterruptionFrame(), *reply(new)]),
            (ended, [EndFrame()]),
        )
    )
    at = next(n for n, one in enumerate(seen.down) if isinstance(one, InterruptionFrame))
    before = np.frombuffer(
        b"".join(one.audio for one in seen.down[:at] if isinstance(one, TTSAudioRawFrame)), "<i2"
    )
    assert set(before) == {1000} and len(before) < 1.5 * RATE
    assert np.array_equal(seen.sound[len(before) :], new)
    assert re.fullmatch("V*SV*(VA)+V?iV*SV*(VA){13}EV*", seen.letters)


def test_speech_that_may_not_be_interrupted_goes_on(service: Service) -> None:
    frames = reply(noise(1))
    for frame in frames:
        frame.interruptible = False
    seen = run(
        watch(service_of(service), frames, (heard(4), [InterruptionFrame()]), (ended, [EndFrame()]))
    )
    assert np.array_equal(seen.sound, noise(1)) and seen.letters.count("E") == 1


def test_a_reply_of_any_length_may_come_at_once(service: Service) -> None:
    """The service takes a minute of sound; the rest waits here and is dropped here."""
    new = level(0.2, -1000)
    seen = run(
        watch(
            service_of(service),
            reply(level(100, 1000)),
            (heard(12), [InterruptionFrame(), *reply(new)]),
            (ended, [EndFrame()]),
        )
    )
    assert np.array_equal(seen.sound[seen.sound < 0], new)
    assert len(seen.sound) < 2 * RATE and not seen.up


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (16_000, 1), (22_050, 1)])
def test_other_rates_and_channels_become_mono_at_the_pipelines_rate(
    service: Service, rate: int, channels: int
) -> None:
    tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    both = np.repeat(tone, channels).astype("<i2")
    seen = run(watch(service_of(service), reply(both, rate, channels)))
    assert {(one.sample_rate, one.num_channels) for one in seen.of(TTSAudioRawFrame)} == {(RATE, 1)}
    heard = seen.sound.astype(float)
    assert len(heard) == pytest.approx(RATE, abs=2)
    expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / RATE)
    middle = slice(RATE // 10, -RATE // 10)
    assert np.corrcoef(heard[middle], expected[middle])[0, 1] > 0.999


def test_rest_comes_in_real_time_and_a_cancelled_pipeline_does_not_wait(
    service: Service, closes: list[AvatarSession]
) -> None:
    seen = run(
        watch(
            service_of(service),
            [],
            (watched(30), reply(level(20, 1000))),
            (heard(5), [CancelFrame()]),
        )
    )
    at = [t for t, one in zip(seen.times, seen.down, strict=True) if type(one).__name__[0] == "O"]
    assert np.median(np.diff(at[4:29])) == pytest.approx(0.04, abs=0.015)
    assert len(seen.sound) < 2 * RATE
    assert len(closes) == 1


def test_the_avatar_listens_thinks_and_rests(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    state, update = AsyncStream.state, AsyncStream.update

    async def stating(self: AsyncStream, name: str) -> None:
        sent.append(name)
        await state(self, name)

    async def updating(self: AsyncStream, **options: object) -> None:
        sent.append(options)
        await update(self, **options)

    monkeypatch.setattr(AsyncStream, "state", stating)
    monkeypatch.setattr(AsyncStream, "update", updating)
    change = ServiceUpdateSettingsFrame(delta=FadaVideoSettings(emotion="happy"))
    seen = run(
        watch(
            service_of(service),
            [],
            (watched(1), [UserStartedSpeakingFrame()]),
            (watched(8), [UserStoppedSpeakingFrame()]),
            (watched(16), [*reply(noise(0.3)), change]),
            (lambda seen: ended(seen) and len(sent) == 4, [EndFrame()]),
        )
    )
    assert sorted(map(str, sent)) == ["idle", "listening", "thinking", "{'emotion': 'happy'}"]
    assert sent.index("listening") < sent.index("thinking") < sent.index("idle")
    assert seen.letters.count("u") == 2


def test_without_a_service_the_voice_goes_on(closes: list[AvatarSession]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    avatar = FadaVideoService(url=url, avatar_id="a", connect_timeout_s=5)
    seen = run(watch(avatar, reply(noise(1))))
    assert re.fullmatch("SA+E", seen.letters) and np.array_equal(seen.sound, noise(1))
    (error,) = seen.up
    assert isinstance(error, ErrorFrame) and error.category is ErrorCategory.CONNECTIVITY
    assert f"FADA at {url}: no session: ConnectionRefusedError" in error.error
    assert not avatar.is_usable and not closes


@pytest.mark.parametrize(
    ("arguments", "category", "text"),
    [
        ({"api_key": "another"}, ErrorCategory.AUTHENTICATION, "API key"),
        ({"options": {"size": 7}}, ErrorCategory.INVALID_REQUEST, "size"),
    ],
)
def test_what_the_service_refuses_is_an_error_that_says_why(
    service: Service, arguments: dict[str, object], category: ErrorCategory, text: str
) -> None:
    seen = run(watch(service_of(service, **arguments), []))
    (error,) = seen.up
    assert isinstance(error, ErrorFrame) and error.category is category
    assert text in error.error


def test_a_session_that_the_service_ends_leaves_the_voice(
    service: Service, closes: list[AvatarSession]
) -> None:
    blue = io.BytesIO()  # poisons the service's third window
    Image.new("RGB", (64, 64), (0, 0, 255)).save(blue, "PNG")
    avatar = service_of(service, portrait=blue.getvalue())
    began_s = time.monotonic()
    seen = run(watch(avatar, [], (watched(1), reply(noise(3))), (ended, [EndFrame()])))
    assert np.array_equal(seen.sound, noise(3)) and seen.letters.count("E") == 1
    assert time.monotonic() - began_s < 15
    (error,) = [one for one in seen.up if isinstance(one, ErrorFrame)]
    assert "the session broke off" in error.error and "internal_error" in error.error
    assert len(closes) == 1 and not avatar.is_usable


def test_either_an_avatar_or_a_portrait() -> None:
    with pytest.raises(ValueError, match="either"):
        FadaVideoService(api_key=KEY)
