from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.log_mel import HOP, LOOKAHEAD, PREFIX, silence_row
from model.audio.stream import SpeechStream
from model.types import SAMPLES_PER_FRAME, Floats


def noise(samples: int) -> Floats:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


def windows(stream: SpeechStream) -> list[Floats]:
    """All whole windows that are there, shown as they are taken."""
    got: list[Floats] = []
    while not stream.missing:
        got.append(stream.window(len(got), HOP, rest=False).features)
        stream.skip(HOP)
    return got


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(0, 30_000), cuts=st.lists(st.integers(0, 30_000), max_size=6))
def test_an_unbroken_speech_gives_the_windows_of_a_whole_one(samples: int, cuts: list[int]) -> None:
    speech = noise(samples)
    live, got = SpeechStream(), list[Floats]()
    for piece in np.split(speech, sorted(min(cut, samples) for cut in cuts)):
        live.push(piece)
        got += windows(live)
    file = SpeechStream()
    file.push(speech)
    whole = [window.features for window in file.take_windows()]
    assert len(got) == len(whole)
    assert all(np.array_equal(a, b) for a, b in zip(got, whole, strict=True))


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(0, 5_000))
def test_an_ended_speech_has_a_row_for_every_frame_that_was_begun(samples: int) -> None:
    live = SpeechStream()
    live.push(noise(samples))
    for _ in range(2):  # saying it twice changes nothing
        assert live.pause() == -(-samples // SAMPLES_PER_FRAME)


def test_a_rest_comes_before_what_is_to_come() -> None:
    live = SpeechStream()
    live.push(noise(4_000))
    known = live.window(0, HOP, rest=False).features[PREFIX : PREFIX + live.rows]
    resting = live.window(0, 3, rest=True).features
    assert np.array_equal(resting[: PREFIX + 3], np.stack([silence_row()] * (PREFIX + 3)))
    assert np.array_equal(resting[PREFIX + 3 : PREFIX + 3 + len(known)], known)
    live.rest(3)
    assert np.array_equal(live.window(1, HOP, rest=False).features[PREFIX:][: len(known)], known)


def test_what_was_shown_stays_past_when_the_rest_is_dropped() -> None:
    live = SpeechStream()
    live.push(noise(10_000))
    before = live.window(0, HOP, rest=False).features
    live.skip(4)
    live.drop()
    after = live.window(1, HOP, rest=True).features
    assert np.array_equal(after[PREFIX - 4 : PREFIX], before[PREFIX : PREFIX + 4])
    assert np.array_equal(after[PREFIX:], np.stack([silence_row()] * (HOP + LOOKAHEAD)))


def test_a_planned_window_is_the_one_of_its_moment() -> None:
    live = SpeechStream()
    live.push(noise(10_000))
    now = live.window(0, HOP, rest=False)
    plan = live.planned(0, HOP, rest=False)
    live.skip(4)
    live.drop()
    live.push(noise(9_000))
    assert np.array_equal(plan().features, now.features)
    assert not np.array_equal(live.window(0, HOP, rest=False).features, now.features)


@pytest.mark.parametrize("frames", [0, HOP + 1])
def test_a_window_of_no_or_too_many_frames(frames: int) -> None:
    with pytest.raises(ValueError, match=f"frames = {frames}"):
        SpeechStream().window(0, frames, rest=True)


def test_stereo_is_no_speech() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        SpeechStream().push(np.zeros((2, 5), np.float32))
