"""How many live sessions a worker can hold."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.types import Floats, SessionState, WindowTask
from server.worker.calibration import (
    Calibration,
    WindowCost,
    cores_per_worker,
    example_reference,
    window_cost,
)
from server.worker.capacity import CPU_SHARE, HOP_S, Capacity, Host
from server.worker.host_load import Cores, HostLoad
from tests.server.fake_pipeline import FakePipeline

WINDOW_S = 2 * HOP_S * CPU_SHARE / 8.5  # eight on two cores


def test_places_follow_from_the_cost_of_a_window() -> None:
    assert Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64).places(0) == 8
    assert Capacity(cores=1.0, window_s=WINDOW_S, max_sessions=64).places(0) == 4
    assert Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=5).places(0) == 5
    assert Capacity(cores=2.0, window_s=10.0, max_sessions=8).places(0) == 1  # late, but not never


class Machine:
    """Two cores with two workers that make windows in real time, on a clock of its own."""

    def __init__(self, *, window_s: float = WINDOW_S, max_sessions: int = 64) -> None:
        self.now_s = 100.0
        self.capacity = Capacity(
            cores=1.0, window_s=window_s, max_sessions=max_sessions, clock=lambda: self.now_s
        )

    def run(
        self,
        seconds: float,
        taken: int,
        *,
        left: float | None,
        used: float = 0.8,
        load: float = 0.3,
        speaking: int | None = None,
        next: bool = True,
        late_s: float = 0.0,
        neighbour_late: bool = False,
    ) -> int:
        """The places after so many seconds with ``taken`` sessions here and two beside."""
        cores = None if left is None else Cores(used, left)
        for _ in range(round(seconds / HOP_S)):
            self.now_s += HOP_S
            for _ in range(taken if speaking is None else speaking):
                self.capacity.record_window(load * HOP_S, HOP_S, late_s=late_s)
            sessions = taken + 2 if taken else 0
            self.capacity.review(taken, Host(2.0, cores, sessions, next, neighbour_late))
        return self.capacity.places(taken)


def test_no_session_is_admitted_near_full_load() -> None:
    for load, left, places, spare in [
        (0.3, None, 4, True),
        (0.7, None, 4, False),
        (0.95, None, 3, False),
        (0.3, 0.05, 3, True),  # a short queue, but the cores are in use
    ]:
        machine = Machine()
        assert machine.run(4.0, 3, left=left, load=load) == places
        assert machine.capacity.has_spare == spare
    # Another program uses the cores up, and windows are made in time.
    assert Machine().run(4.0, 3, left=0.0, used=0.3) == 4


def test_after_too_many_fewer_are_admitted_for_a_while() -> None:
    machine = Machine()
    machine.run(4.0, 4, left=0.02, load=0.95)
    assert machine.run(10.0, 2, left=1.0) == 3  # one has left; it was one too many
    assert machine.run(60.0, 2, left=1.0) == 4


def test_a_session_that_falls_behind_on_a_busy_machine_stops_admission() -> None:
    machine = Machine()
    assert machine.run(4.0, 3, left=0.8, load=0.7, late_s=0.5) == 3
    assert machine.capacity.must_catch_up(0.5) and not machine.capacity.must_catch_up(0.05)
    assert machine.run(10.0, 2, left=0.8) == 2  # one has left; it was one too many
    stalled = Machine()  # by its client: there is room for its speech as it comes
    assert stalled.run(4.0, 3, left=0.8, load=0.3, late_s=2.0) == 4
    assert not stalled.capacity.must_catch_up(2.0)


def test_beyond_the_estimate_one_session_at_a_time_takes_what_others_leave() -> None:
    machine = Machine()
    assert machine.run(1.0, 4, left=0.8) == 4  # what four cost shows only after a while
    assert machine.run(12.0, 4, left=0.8) == 5
    assert machine.capacity.places(5) == 5  # until it is seen what the fifth leaves
    assert machine.run(9.0, 5, left=0.6) == 5
    assert machine.run(4.0, 5, left=0.6) == 6
    assert machine.run(12.0, 6, left=0.2) == 6  # a session costs 0.13, and some stays free
    assert machine.capacity.places(3) == 4  # sessions of another day may cost more


@pytest.mark.parametrize("slow", [{"left": 0.25}, {"left": 0.8, "load": 0.7}])
def test_the_slowest_moment_counts(slow: dict[str, float]) -> None:
    machine = Machine()
    machine.run(6.0, 2, left=0.8)
    machine.run(1.0, 4, left=0.8)
    machine.run(5.0, 4, left=slow["left"], load=slow.get("load", 0.3))
    assert machine.run(7.0, 4, left=0.8) == 4
    assert machine.run(3.0, 4, left=0.8) == 5  # it has passed


def test_nothing_is_admitted_while_a_session_of_another_worker_is_late() -> None:
    machine = Machine()
    assert machine.run(1.0, 2, left=1.5, neighbour_late=True) == 2
    assert machine.run(1.0, 0, left=1.5, neighbour_late=True) == 0
    assert machine.run(1.0, 0, left=1.5) == 4


Spell = tuple[float, float, float, float]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.5, 20.0), st.floats(0, 2), st.floats(0, 2), st.floats(0, 1))),
    st.integers(1, 6),
)
def test_late_sessions_get_no_company_and_a_slow_spell_passes(
    spells: list[Spell], taken: int
) -> None:
    machine, most = Machine(), 6
    for seconds, left, load, late_s in spells:
        places = machine.run(seconds, taken, left=left, load=load, late_s=late_s)
        if machine.capacity.must_catch_up(late_s):
            assert places <= taken
        assert places <= max(taken + 1, 4)
        taken = min(places, most)
    assert machine.run(80.0, 2, left=1.5) == 4
    assert machine.run(12.0, 4, left=1.0) == 5


@pytest.mark.parametrize(
    "case",
    [
        {"next": False},  # another worker is asked first
        {"left": None},
        {"load": 0.7},
        {"speaking": 2},  # silent ones may speak at any time
    ],
)
def test_nothing_is_added_without_a_reason(case: dict[str, Any]) -> None:
    assert Machine().run(12.0, 4, **{"left": 0.8, **case}) == 4


def test_a_worker_never_has_more_places_than_the_setting_allows() -> None:
    assert Machine(max_sessions=4).run(12.0, 4, left=1.0) == 4
    assert Machine(window_s=10.0).run(12.0, 1, left=1.9) == 1


def test_offline_jobs_wait_for_live_sessions_of_other_workers() -> None:
    capacity = Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64)
    assert capacity.has_spare
    capacity.set_neighbours_busy(True)
    assert not capacity.has_spare and not capacity.busy
    capacity.set_neighbours_busy(False)
    assert capacity.has_spare


def test_silent_sessions_cost_nothing() -> None:
    machine = Machine()
    machine.run(4.0, 3, left=0.0, load=2.0)
    assert (machine.capacity.places(3), machine.capacity.has_spare) == (3, False)
    assert machine.capacity.places(0) > 0  # an empty worker takes some
    machine.now_s += 3.0
    assert machine.capacity.has_spare


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux writes")
def test_cores_left_are_those_idle_or_at_low_priority(tmp_path: Path) -> None:
    now_s, stat = 10.0, tmp_path / "stat"
    core = min(os.sched_getaffinity(0))

    def line(core: int, nice: int, idle: int) -> str:
        return f"cpu{core} 9 {nice} 9 {idle} 3 9 9 9 0 0\n"

    load = HostLoad(stat, lambda: now_s, used_s=lambda: now_s / 4, hertz=100)
    assert load.read() is None  # the kernel does not say
    stat.write_text("cpu 1 1 1 1 1 1 1 1\n" + line(core, 100, 200) + line(4096, 0, 0))
    assert load.read() is None  # nothing to compare with
    now_s += 2.0
    stat.write_text("cpu 9 9 9 9 9 9 9 9\n" + line(core, 120, 300) + line(4096, 500, 900))
    assert load.read() == Cores(used=0.25, left=pytest.approx(0.6))
    now_s += 2.0
    assert load.read() == Cores(used=0.25, left=0.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 5.0), max_size=50), st.integers(0, 80))
def test_places_never_exceed_the_setting(paces: list[float], running: int) -> None:
    capacity = Capacity(cores=4.0, window_s=0.01, max_sessions=16)
    for pace in paces:
        capacity.record_window(pace, 1.0)
    assert 0 <= capacity.places(running) <= 16


def test_a_window_is_measured() -> None:
    fake = FakePipeline("fake")
    cost = window_cost(fake, example_reference(fake))
    assert 0 < cost.network_s < 1
    assert cost.network_s < cost.cpu_s < 1


def test_a_very_slow_student_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = FakePipeline("slow")
    monkeypatch.setattr("server.worker.calibration._TOO_SLOW", 0.0)
    assert window_cost(slow, example_reference(slow)).cpu_s > 0
    assert slow.batches == [1]


def test_a_session_of_a_costlier_student_takes_several_places() -> None:
    costs = {"fast": 1.1, "balanced": 2.4}
    capacity = Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64, relative_costs=costs)
    assert capacity.places_taken([]) == 0
    assert capacity.places_taken(["fast"] * 8) == 8  # a tenth is what measuring twice gives
    assert capacity.places_taken(["balanced", "fast", "balanced"]) == 5


def test_workers_share_the_cores() -> None:
    assert cores_per_worker(4) == pytest.approx(cores_per_worker(1) / 4)


def test_the_network_s_one_thread_limits_a_worker_with_many_cores() -> None:
    cost = WindowCost(cpu_s=0.02, network_s=0.01, hop_s=HOP_S)
    assert cost.share(cores=1.0) == pytest.approx(0.02 / HOP_S)
    assert cost.share(cores=16.0) == pytest.approx(0.01 / HOP_S)


def test_a_new_engine_s_cost_changes_the_places() -> None:
    calibration = Calibration({"fake": FakePipeline("fake")}, 1)
    capacity = calibration.capacity(1000)
    calibration.update("fake", WindowCost(0.001, HOP_S * CPU_SHARE / 8.5, HOP_S), capacity)
    assert capacity.places(0) == 8
    calibration.update("fake", WindowCost(0.001, HOP_S * CPU_SHARE / 20.5, HOP_S), capacity)
    assert capacity.places(0) == 20
    capacity.max_sessions = 12
    assert capacity.places(0) == 12


def test_beside_live_sessions_a_slow_network_is_measured_alone() -> None:
    class Slow(FakePipeline):
        def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
            threads.add(threading.current_thread().name)
            began_s = time.thread_time()
            while time.thread_time() - began_s < 0.02:
                pass
            return super().step(tasks)

    threads: set[str] = set()
    slow = Slow("slow")
    with ThreadPoolExecutor(1, "network") as network:
        cost = window_cost(slow, example_reference(slow), network)
    assert slow.batches == [1, 1]
    assert threads == {"network_0"}
    assert 0.01 < cost.network_s < 0.3
