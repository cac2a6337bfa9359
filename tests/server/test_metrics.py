"""`/metrics` merges the metrics of all processes, through the real broker."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed

from server import metrics
from server.api.live import _AudioArrivals
from server.broker.embedded import embedded_server, valkey_program
from server.broker.redis import Connection, connect
from tests.e2e.talker import eventually
from tests.server.media_files import POISON, picture, sound
from tests.server.service import FAKE, Service, running, working
from tests.server.stream_client import pcm, run_session, stream_to

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Figures:
    """Every sample by name and labels; fails if a family appears twice."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    found: Figures = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def total(figures: Figures, name: str, **labels: str) -> float:
    """The sum over every sample of this name that has at least these labels."""
    wanted = labels.items()
    return sum(v for (n, held), v in figures.items() if n == name and wanted <= set(held))


def figures_of(service: Service) -> Figures:
    with service.client() as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(answer.text)


def until(service: Service, name: str, at_least: float, **labels: str) -> Figures:
    """Wait until a metric reaches ``at_least``: workers report every two seconds."""
    deadline = time.monotonic() + 20
    while True:
        figures = figures_of(service)
        if total(figures, name, **labels) >= at_least:
            return figures
        assert time.monotonic() < deadline, (name, labels, figures)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(FAKE) as service:
        yield service


def test_metrics_after_finished_jobs(service: Service) -> None:
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(2.0))}
    with service.client() as client:
        assert client.post("/animate", files=files, data={"size": "128"}).status_code == 200
        bad = {**files, "portrait": ("p.png", picture(POISON))}
        with pytest.raises(httpx.RemoteProtocolError):  # the response ends early
            client.post("/animate", files=bad, data={"size": "128"})
        assert client.get("/jobs/none").status_code == 404
    live = run_session(service.url, [pcm(1.0)])
    figures = until(service, "fada_jobs_total", 3)
    assert total(figures, "fada_jobs_total", kind="animate", outcome="done") == 1
    assert total(figures, "fada_jobs_total", kind="animate", outcome="internal_error") == 1
    assert total(figures, "fada_jobs_total", kind="live", outcome="done") == 1
    assert total(figures, "fada_sessions") == 0
    assert total(figures, "fada_queue_jobs") == 0
    assert total(figures, "fada_workers") == 1
    assert total(figures, "fada_live_places", state="all") >= 1
    assert total(figures, "fada_live_load_count") >= 3  # windows of a second of speech
    memory = total(figures, "fada_broker_memory_bytes")
    assert 0 < memory < total(figures, "fada_broker_memory_limit_bytes")
    assert total(figures, "process_start_time_seconds") > 1e9
    for stage in ("queue", "denoise", "draw", "encode", "publish"):
        assert total(figures, "fada_stage_seconds_count", stage=stage) > 0, stage
    windows = total(figures, "fada_batch_windows_sum")
    assert windows == total(figures, "fada_stage_seconds_count", stage="queue") > 8
    fragments = total(figures, "fada_fragments_total", kind="speech")
    assert fragments > len(live.of("fragment"))
    # The failed job may have published its first two windows, or neither.
    seconds = total(figures, "fada_video_seconds_total") - 2.0 - live.texts[-1]["frames"] / 25
    assert -1e-6 < seconds < 0.65
    assert total(figures, "fada_real_time_factor_count") == 1
    assert total(figures, "fada_first_fragment_seconds_count", kind="live") == 1
    assert total(figures, "fada_first_fragment_seconds_count", kind="animate") >= 1
    spoke = [f for f in live.of("fragment") if f["duration_s"]]  # the last may hold sound only
    assert total(figures, "fada_mic_to_fragment_seconds_count") == len(spoke)
    assert total(figures, "fada_errors_total", code="not_found") == 1
    assert total(figures, "fada_requests_total", route="/animate", status="200") >= 1
    assert total(figures, "fada_requests_total", route="/stream", status="1000") == 1
    assert total(figures, "fada_requests_total", route="/jobs/{job_id}", status="404") == 1
    assert {name.split("-")[0] for name in processes(service)} == {"api", "worker"}
    assert total(figures, "process_resident_memory_bytes") > 1e7


def test_a_running_job_is_counted(service: Service) -> None:
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(60.0))}
    with service.client() as client:
        headers = {"Prefer": "respond-async"}
        job = client.post("/animate", files=files, data={"size": "1024"}, headers=headers)
        figures = until(service, "fada_sessions", 1, kind="animate")
        assert total(figures, "fada_queue_jobs", state="running") == 1
        client.delete(job.headers["location"])
    deadline = time.monotonic() + 20
    while given_up(figures := figures_of(service)) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert total(figures, "fada_sessions") == 0


def given_up(figures: Figures) -> float:
    """Cancelled jobs, which a worker notices when it renews a lease or publishes."""
    outcomes = ("released", "aborted")
    return sum(total(figures, "fada_jobs_total", kind="animate", outcome=o) for o in outcomes)


def test_what_dead_processes_held_is_free_and_their_metrics_expire() -> None:
    with embedded_server(valkey_program()) as broker, ExitStack() as stack:
        settings = {**FAKE, "FADA_REDIS_URL": broker.url, "FADA_SESSIONS_PER_WORKER": "1"}
        worker = stack.enter_context(working(settings))
        first, second = (stack.enter_context(running(settings, "api")) for _ in range(2))
        eventually(lambda: len(processes(first)) == len(processes(second)) == 3, 180.0)
        with stream_to(first.url) as stream:
            stream.start()  # and sends nothing: its worker waits
            stream.until("ready")
            assert full(second)
            first.process.kill()
            eventually(lambda: not full(second), 60.0)
        worker.kill()
        eventually(lambda: len(processes(second)) == 1)
        assert not any(name.endswith(f"-{worker.pid}") for name in processes(second))


def processes(service: Service) -> set[str]:
    """The processes of which this one's metrics tell."""
    return {dict(held).get("process", "") for _, held in figures_of(service)} - {""}


def full(service: Service) -> bool:
    with stream_to(service.url) as stream:
        stream.start()
        with suppress(ConnectionClosed):  # it may have been rejected by now
            stream.send("end")
        return stream.close_code() == 1013


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_copies_of_processes_are_merged_separately() -> None:
    with embedded_server(valkey_program()) as broker:
        async with connect(broker.url) as connection:
            metrics.batch(3)
            await _leave_a_copy(connection, "worker-a")
            metrics.batch(2)
            await _leave_a_copy(connection, "worker-b")
            metrics.batch(1)
            figures = read((await metrics.render(connection, "api-c")).decode())
    counts = [
        total(figures, "fada_batch_windows_count", process=name)
        for name in ("worker-a", "worker-b", "api-c")
    ]
    assert [b - a for a, b in itertools.pairwise(counts)] == [1, 1]


async def _leave_a_copy(connection: Connection, process: str) -> None:
    await connection.redis.set(f"fada:metrics:{process}", metrics.snapshot())
    await connection.redis.sadd("fada:metrics", process)


@given(
    chunks=st.lists(st.integers(1, 4000), min_size=1, max_size=30),
    fragments=st.lists(st.sampled_from([0.04, 0.16, 0.32]), max_size=30),
)
def test_latency_counts_from_a_fragments_first_byte(
    chunks: list[int], fragments: list[float]
) -> None:
    rate = 8_000
    arrivals, came_s = _AudioArrivals(rate), list[float]()
    for index, size in enumerate(chunks):
        arrivals.add(sum(chunks[: index + 1]), 0.1 * index)
        came_s += [0.1 * index] * size
    position = 0.0
    for seconds in fragments:
        expected = came_s[int(position)] if position < len(came_s) else None
        assert arrivals.take(seconds) == expected
        position += seconds * 2 * rate


def test_dropped_audio_does_not_count() -> None:
    arrivals = _AudioArrivals(8_000)
    arrivals.add(16_000, 1.0)
    arrivals.seek(16_000)
    arrivals.add(20_000, 5.0)
    assert arrivals.take(0.16) == 5.0
