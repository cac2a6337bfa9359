from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.live.figures import (
    CUSHION_S,
    Stage,
    mic_to_fragment,
    playback,
    quantiles,
    stages_between,
    summary,
    unbroken,
)
from bench.live.load import largest
from bench.live.session import Record, Seen

STEP_S = 0.16


def fragments(times_s: list[float], *, speech: bool = True) -> list[Seen]:
    return [Seen(i * STEP_S, STEP_S, speech, 1000, at_s) for i, at_s in enumerate(times_s)]


def record(times_s: list[float], **fields: object) -> Record:
    made = Record(asked_s=0.0, ready_s=0.1, spoke_s=0.1, fragments=fragments(times_s))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_sound_waits_from_its_own_first_sample_on() -> None:
    idle = Seen(0.0, STEP_S, False, 1000, 0.3)
    speech = [Seen(STEP_S * (i + 1), STEP_S, True, 1000, 0.7 + 0.2 * i) for i in range(3)]
    late = mic_to_fragment(record([], spoke_s=0.1, fragments=[idle, *speech]))
    assert [at for at, _ in late] == pytest.approx([0.7, 0.9, 1.1])
    assert [wait for _, wait in late] == pytest.approx([0.6, 0.64, 0.68])


@given(jitter=st.lists(st.floats(0.0, CUSHION_S - 0.001), min_size=1, max_size=50))
def test_a_player_never_waits_for_what_comes_within_its_cushion(jitter: list[float]) -> None:
    times = [5.0 + i * STEP_S + wait for i, wait in enumerate([0.0, *jitter])]
    assert playback(fragments(times)).missed == 0


@given(
    waits=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=50),
)
def test_a_player_stands_still_as_long_as_the_worst_delay_beyond_its_cushion(
    waits: list[float],
) -> None:
    times = [i * STEP_S + wait for i, wait in enumerate([0.0, *waits])]
    seen = playback(fragments(times))
    assert seen.stalled_s == pytest.approx(max(0.0, max(waits) - CUSHION_S), abs=1e-9)
    assert seen.fragments == len(times)


def test_percentiles_are_values_that_were_seen() -> None:
    assert quantiles(range(1, 101), (50, 95, 99)) == {"p50": 50, "p95": 95, "p99": 99}
    assert quantiles([7.0], (50, 99)) == {"p50": 7.0, "p99": 7.0}
    assert quantiles([], (50,)) is None


def test_a_gap_in_the_video_is_seen() -> None:
    whole = fragments([0.0, 0.1, 0.2])
    assert unbroken(whole)
    assert not unbroken([whole[0], whole[2]])


def test_sessions_in_time_keep_real_time_and_others_do_not() -> None:
    times = [0.6 + i * STEP_S for i in range(100)]
    good = record(times)
    assert summary([good, good], 1.0, 11.0, fps=25).real_time
    for bad in (
        record([t + 0.15 * (i > 20) for i, t in enumerate(times)]),  # late
        record([1.03 * t for t in times]),  # slow
        record(times, trouble="internal_error"),
        Record(trouble="busy"),
    ):
        run = summary([good, bad], 1.0, 11.0, fps=25)
        assert not run.real_time, run
    assert largest([summary([good], 1.0, 11.0, fps=25)]) == 1


def test_figures_are_those_of_the_time_asked_for() -> None:
    run = summary([record([0.6 + i * STEP_S for i in range(100)])], 5.0, 9.0, fps=25)
    assert run.frames_per_s == pytest.approx(25.0)
    assert run.pace == pytest.approx(1.0)
    assert run.fragments == 25
    assert run.kbit_per_s == pytest.approx(25 * 8.0 / 4.0)


def test_stages_are_those_of_the_time_between_two_looks() -> None:
    before = {"denoise": (1.0, 10.0), "idle": (5.0, 5.0)}
    after = {"denoise": (3.0, 30.0), "draw": (8.0, 80.0), "idle": (5.0, 5.0)}
    assert stages_between(before, after, 4.0) == {
        "denoise": Stage(pytest.approx(0.1), pytest.approx(0.5)),
        "draw": Stage(pytest.approx(0.1), pytest.approx(2.0)),
    }
