"""`/stream` over real processes: uvicorn, Valkey, a worker with the pipeline of flat colours."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from server.api.protocol import AI_GENERATED
from tests.server.fake_pipeline import GREEN_STEP
from tests.server.media_files import NO_FACE, POISON, picture
from tests.server.media_probe import boxes
from tests.server.service import Service
from tests.server.stream_client import Stream, pcm, run_session, stream_to


@pytest.fixture
def stream(service: Service) -> Iterator[Stream]:
    """A connection; after the test the service must still animate."""
    with stream_to(service.url) as stream:
        yield stream
    run_session(service.url, [pcm(0.2)])


def test_messages_arrive_in_order(stream: Stream) -> None:
    stream.start(seed=7)
    stream.send_audio(pcm(1.5))
    done = stream.finish()
    assert stream.kinds[:2] == ["ready", "data"]
    assert stream.kinds[2:-1] == ["fragment", "data"] * len(stream.of("fragment"))
    ready = stream.texts[0]
    assert (ready["seed"], ready["fps"], ready["width"], ready["height"]) == (7, 25, 128, 128)
    assert ready["session_id"]
    assert ready["mime"].startswith('video/mp4; codecs="avc1.')
    assert ready["mime"].endswith(',mp4a.40.2"')
    assert [kind for kind, _ in boxes(stream.data[0])] == ["ftyp", "uuid", "moov"]
    assert ready["digital_source_type"] == AI_GENERATED
    for blob in stream.data[1:]:
        assert [kind for kind, _ in boxes(blob)] == ["moof", "mdat"]
    fragments = stream.of("fragment")
    assert [f["index"] for f in fragments] == list(range(len(fragments)))
    starts = np.cumsum([0.0, *(f["duration_s"] for f in fragments)])
    assert [f["start_s"] for f in fragments] == pytest.approx(starts[:-1])
    assert {f["kind"] for f in fragments} == {"speech"}
    assert done == {"type": "done", "frames": 38, "duration_s": 1.5}
    seen = stream.video()
    assert (seen.video_s, seen.sound_s) == (pytest.approx(1.52), pytest.approx(1.5, abs=0.001))
    assert seen.pictures[:, 1].mean() == pytest.approx(7 * GREEN_STEP, abs=8)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_the_video_is_as_long_as_the_audio(service: Service, rate: int) -> None:
    count = round(1.234 * rate)
    stream = run_session(service.url, [pcm(1.234, rate)], sample_rate=rate)
    seen = stream.video()
    assert seen.sound_s == pytest.approx(count / rate, abs=0.001)
    assert seen.video_s == pytest.approx(1.234, abs=0.041)


@pytest.mark.parametrize("size", [1, 639, 4_001, 32_000])
def test_any_chunking_gives_the_same_video(service: Service, size: int) -> None:
    sound = pcm(0.4, 8_000) if size == 1 else pcm(1.3, 8_000)
    chunks = [sound[i : i + size] for i in range(0, len(sound), size)]
    whole, cut = (run_session(service.url, c, seed=3, sample_rate=8_000) for c in ([sound], chunks))
    assert whole.data == cut.data


def test_audio_is_preserved(service: Service) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000) * 12_000
    seen = run_session(service.url, [tone.astype("<i2").tobytes()]).video()
    heard = seen.sound[24_000:72_000]  # past the codec's first moments
    loudest = np.abs(np.fft.rfft(heard)).argmax() * seen.rate / len(heard)
    assert loudest == pytest.approx(440, abs=2)


def test_no_audio_gives_an_empty_video(stream: Stream) -> None:
    stream.start()
    assert stream.finish() == {"type": "done", "frames": 0, "duration_s": 0.0}


def test_an_interrupt_drops_pending_audio(stream: Stream) -> None:
    stream.start(size=512)
    stream.send_audio(pcm(50.0))
    while len(stream.of("fragment")) < 3:
        stream.next()
    stream.send("interrupt")
    told = len(stream.of("fragment"))
    at_s = stream.until("interrupted")["at_s"]
    after = stream.of("fragment")[told:]
    assert at_s == pytest.approx(sum(f["duration_s"] for f in stream.of("fragment")))
    assert at_s < 10  # of fifty: what waited is gone
    stream.send_audio(pcm(1.0))
    done = stream.finish()
    rest = stream.of("fragment")[told + len(after) :]
    kinds = [kind for kind, _ in itertools.groupby(f["kind"] for f in rest)]
    assert kinds == ["idle", "speech"] or kinds == ["speech"]
    assert sum(f["duration_s"] for f in rest if f["kind"] == "speech") == pytest.approx(1.0)
    seen = stream.video()
    assert seen.video_s == pytest.approx(done["duration_s"], abs=0.041)
    assert np.diff(seen.times_s) == pytest.approx(0.04)  # the timeline is unbroken
    assert seen.sound_s == pytest.approx(done["duration_s"], abs=0.001)


def test_an_interrupt_without_idle_ends_at_rest(stream: Stream) -> None:
    stream.start()
    stream.send_audio(pcm(2.0))
    stream.until("fragment")
    stream.send("interrupt")
    stream.until("interrupted")
    settling = [stream.until("fragment") for _ in range(2)]
    assert [f["kind"] for f in settling] == ["idle", "idle"]
    stream.send("end")
    assert stream.close_code() == 1000
    assert len([f for f in stream.of("fragment") if f["kind"] == "idle"]) == 2


def test_idle_runs_in_real_time_until_speech(stream: Stream) -> None:
    stream.start(idle=True)
    for _ in range(6):
        stream.until("fragment")
    assert {f["kind"] for f in stream.of("fragment")} == {"idle"}
    stream.send_audio(pcm(1.0))
    # A second of speech is there at once: it does not wait for an end or for more.
    while stream.until("fragment")["kind"] == "idle":
        pass
    while stream.until("fragment")["kind"] == "speech":
        pass
    done = stream.finish()
    speech = [f["duration_s"] for f in stream.of("fragment") if f["kind"] == "speech"]
    assert sum(speech) == pytest.approx(1.0, abs=0.041)
    media = np.cumsum([f["duration_s"] for f in stream.of("fragment")])
    elapsed = np.array(stream.times_s) - stream.times_s[0]
    # Speech is begun a window before its time, and a fragment is half as long.
    assert (media[: len(elapsed)] - elapsed).max() < 0.32 + 0.16 + 0.1
    assert stream.video().video_s == pytest.approx(done["duration_s"], abs=0.041)


def test_an_interrupt_with_idle_stops_speech_soon(stream: Stream) -> None:
    stream.start(idle=True)
    stream.send_audio(pcm(20.0))
    for _ in range(5):
        stream.until("fragment")
    before = len(stream.of("fragment"))
    stream.send("interrupt")
    stream.until("interrupted")
    late = stream.of("fragment")[before:]
    assert sum(f["duration_s"] for f in late if f["kind"] == "speech") <= 0.25
    assert stream.until("fragment")["kind"] == "idle"
    stream.finish()


def test_options_change_during_a_session(stream: Stream) -> None:
    stream.start()
    stream.send("update", steps=6, audio_cfg=1.5, head_motion=0, gaze="camera", blink_rate=2)
    stream.send("state", state="listening")
    stream.send_audio(pcm(0.5))
    stream.finish()


def refused(stream: Stream) -> tuple[str, int]:
    """The code of the error, which must be the last message, and of the close."""
    code = stream.close_code()
    assert stream.texts[-1]["type"] == "error", stream.texts
    assert stream.texts[-1]["detail"]
    return stream.texts[-1]["code"], code


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"steps": 0}, ("invalid_option", 1008)),
        ({"audio_cfg": "loud"}, ("invalid_option", 1008)),
        ({"head_motion": 2.1}, ("invalid_option", 1008)),
        ({"gaze": "away"}, ("invalid_option", 1008)),
        ({"sample_rate": 7_999}, ("invalid_option", 1008)),
        ({"sample_rate": 48_001}, ("invalid_option", 1008)),
        ({"sample_rate": "fast"}, ("invalid_option", 1008)),
        ({"idle": "perhaps"}, ("invalid_option", 1008)),
        ({"colour": "red"}, ("invalid_option", 1008)),
        ({"options": {}}, ("invalid_option", 1008)),
        ({"model": "none such"}, ("invalid_option", 1008)),
        ({"portrait": "%%%"}, ("bad_request", 1008)),
        ({"portrait": "é"}, ("bad_request", 1008)),
        ({"portrait": 7}, ("invalid_option", 1008)),
        ({"portrait": "aGVsbG8="}, ("unsupported_media", 1008)),
        ({"portrait": None}, ("bad_request", 1008)),
        ({"avatar_id": "none"}, ("not_found", 1008)),
        ({"avatar_id": "none", "portrait": "aGVsbG8="}, ("bad_request", 1008)),
    ],
)
def test_bad_starts(stream: Stream, fields: dict[str, Any], expected: tuple[str, int]) -> None:
    stream.start(**fields)
    assert refused(stream) == expected


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "{}", '{"type":"end"}', '{"type":"begin"}', "[" * 100_000, '"\\ud800"'],
)
def test_a_first_text_other_than_start(stream: Stream, text: str) -> None:
    stream.socket.send(text)
    assert refused(stream) == ("bad_request", 1008)


def test_audio_before_start(stream: Stream) -> None:
    stream.send_audio(pcm(0.1))
    assert refused(stream) == ("bad_request", 1008)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nonsense", "bad_request"),
        ('{"type":"start"}', "bad_request"),
        ('{"type":"interrupt","now":true}', "bad_request"),
        ('{"type":["end"]}', "bad_request"),
        ('{"type":"update","steps":99}', "invalid_option"),
        ('{"type":"update","seed":1}', "invalid_option"),
        ('{"type":"update","state":"idle"}', "invalid_option"),
        ('{"type":"state","state":"bored"}', "invalid_option"),
        ('{"type":"state"}', "bad_request"),
        ('{"type":"update","audio_cfg":NaN}', "invalid_option"),
    ],
)
def test_bad_texts_after_start(stream: Stream, text: str, code: str) -> None:
    stream.start()
    stream.send_audio(pcm(0.6))
    stream.until("fragment")
    stream.socket.send(text)
    assert refused(stream) == (code, 1008)


def test_audio_after_end(stream: Stream) -> None:
    stream.start(idle=True)
    stream.send_audio(pcm(5.0))
    stream.send("end")
    stream.send_audio(pcm(0.1))
    assert refused(stream) == ("bad_request", 1008)


def test_too_much_pending_audio_is_rejected(stream: Stream) -> None:
    stream.start(sample_rate=8_000, idle=True)
    stream.send_audio(pcm(59.0, 8_000))
    stream.until("fragment")
    stream.send_audio(pcm(40.0, 8_000))
    assert refused(stream) == ("too_large", 1009)
    assert "60 s" in stream.texts[-1]["detail"]


def test_a_message_beyond_the_limit(stream: Stream) -> None:
    stream.start()
    stream.until("ready")
    stream.send_audio(bytes((6 << 20) + 1))
    assert refused(stream) == ("too_large", 1009)
    assert str(6 << 20) in stream.texts[-1]["detail"]


def test_size_limits_of_texts_and_before_start(service: Service) -> None:
    with stream_to(service.url) as stream:
        stream.start()
        stream.until("ready")
        stream.send("update", steps=3, audio_cfg=1.0, note="x" * (16 << 10))
        assert refused(stream) == ("too_large", 1009)
    with stream_to(service.url) as stream:
        stream.start(portrait_file=picture() + bytes(1 << 20))
        assert refused(stream) == ("too_large", 1009)
    with stream_to(service.url) as stream:
        stream.send_audio(bytes(3 << 20))
        assert stream.close_code() == 1009


def test_lone_surrogates_are_rejected(stream: Stream) -> None:
    stream.socket.send('{"type": "start", "avatar_id": "\\ud800"}')
    assert refused(stream) == ("bad_request", 1008)


def test_a_slow_reader_slows_only_itself(service: Service) -> None:
    with stream_to(service.url) as slow, stream_to(service.url) as other:
        slow.start(size=1024, seed=1)
        slow.send_audio(pcm(50.0))
        slow.until("ready")  # and then reads no more, until the other is done
        other.start(seed=2)
        other.send_audio(pcm(8.0))
        other.finish()
        slow.send("interrupt")
        at_s = slow.until("interrupted")["at_s"]
        assert at_s < 50.0
        slow.finish()
    assert other.video().video_s == pytest.approx(8.0)
    assert np.diff(slow.video().times_s) == pytest.approx(0.04)


def test_no_face_ends_the_session(stream: Stream) -> None:
    stream.start(portrait_file=picture(NO_FACE))
    assert refused(stream) == ("no_face", 1008)


def test_a_poisoned_window_ends_its_own_session_only(service: Service, stream: Stream) -> None:
    stream.start(seed=1, idle=True)
    stream.until("fragment")
    with stream_to(service.url) as bad:
        bad.start(portrait_file=picture(POISON))
        bad.send_audio(pcm(4.0))
        assert refused(bad) == ("internal_error", 1011)
    stream.send_audio(pcm(0.8))
    stream.finish()


def test_concurrent_sessions_are_independent(service: Service) -> None:
    sound = pcm(1.5)
    with ExitStack() as stack:
        streams = [stack.enter_context(stream_to(service.url)) for _ in range(3)]
        for n, stream in enumerate(streams):
            stream.start(seed=3 * n)
        for start in range(0, len(sound), 8_000):
            for stream in streams:
                stream.send_audio(sound[start : start + 8_000])
        for stream in streams:
            stream.finish()
    for n, stream in enumerate(streams):
        green = stream.video().pictures[:, 1]
        assert np.abs(green - 3 * n * GREEN_STEP).max() < 12
    alone = run_session(service.url, [sound], seed=3)
    assert streams[1].data == alone.data


def test_a_session_beyond_capacity_is_busy_at_once(service: Service) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            held = stack.enter_context(stream_to(service.url))
            held.start(idle=True)
            held.until("ready")
        with stream_to(service.url) as extra:
            extra.start()
            assert refused(extra) == ("busy", 1013)
            assert extra.texts[-1]["detail"] == "all 4 places are taken"  # none was waited for
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # a client that hung up frees its place
        with stream_to(service.url) as again:
            again.start()
            again.send("end")
            if again.close_code() == 1000:
                return
    pytest.fail("the places are not free again")


def test_a_session_with_an_avatar(service: Service) -> None:
    with service.client() as client:
        made = client.post("/avatars", files={"portrait": ("p.png", picture())}).json()
    stream = run_session(service.url, [pcm(0.4)], avatar_id=made["avatar_id"])
    assert json.dumps(stream.texts[-1]["frames"]) == "10"


def test_a_session_outlives_its_worker(service: Service) -> None:
    with stream_to(service.url) as stream:
        stream.start(seed=5)
        for _ in range(3):
            stream.send_audio(pcm(1.0))
        stream.until("fragment")
        os.kill(service.workers()[0], signal.SIGKILL)  # the one that comes in its place goes on
        assert stream.finish() == {"type": "done", "frames": 75, "duration_s": 3.0}
        alone = run_session(service.url, [pcm(1.0)] * 3, seed=5).video()
        seen = stream.video()
        assert np.diff(seen.times_s) == pytest.approx(0.04)
        assert np.abs(seen.pictures - alone.pictures).max() < 2
        assert (seen.sound_s, len(seen.sound)) == (alone.sound_s, len(alone.sound))
