"""How many live sessions a worker can hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
from server.worker.capacity import CPU_SHARE, HOP_S, Capacity
from tests.server.fake_pipeline import FakePipeline

WINDOW_S = 2 * HOP_S * CPU_SHARE / 8.5  # eight on two cores


def test_places_follow_from_the_cost_of_a_window() -> None:
    assert Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64).places(0) == 8
    assert Capacity(cores=1.0, window_s=WINDOW_S, max_sessions=64).places(0) == 4
    assert Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=5).places(0) == 5
    assert Capacity(cores=2.0, window_s=10.0, max_sessions=8).places(0) == 1  # late, but not never


def test_no_session_is_admitted_near_full_load() -> None:
    capacity = Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64)
    for pace, places, spare in [(0.3, 8, True), (0.7, 8, False), (0.95, 5, False), (0.5, 8, True)]:
        for _ in range(40):
            capacity.record_window(pace * HOP_S, HOP_S)
        assert (capacity.places(5), capacity.has_spare) == (places, spare)


def test_offline_jobs_wait_for_live_sessions_of_other_workers() -> None:
    capacity = Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64)
    assert capacity.has_spare
    capacity.set_neighbours_busy(True)
    assert not capacity.has_spare and not capacity.busy
    capacity.set_neighbours_busy(False)
    assert capacity.has_spare


def test_light_load_admits_one_session_beyond_the_estimate() -> None:
    capacity = Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=9)
    assert capacity.places(8) == 8  # nothing was seen yet
    capacity.record_window(0.2 * HOP_S, HOP_S)
    assert capacity.places(7) == 8
    assert capacity.places(8) == 9
    assert capacity.places(9) == 9


def test_silent_sessions_cost_nothing() -> None:
    now_s = 100.0
    capacity = Capacity(cores=2.0, window_s=WINDOW_S, max_sessions=64, clock=lambda: now_s)
    for _ in range(40):
        capacity.record_window(2 * HOP_S, HOP_S)
    assert (capacity.places(5), capacity.has_spare) == (5, False)
    assert capacity.places(0) == 8  # and an empty worker has all of its places
    now_s += 3.0
    assert (capacity.places(5), capacity.has_spare) == (8, True)


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
