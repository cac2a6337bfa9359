"""The processes of `fada serve`: start, crash and stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from fada.cli import main
from server import process
from server.broker.embedded import embedded_server, valkey_program
from server.errors import SetupError
from server.settings import Settings
from server.supervisor import Supervisor, worker_count
from server.worker.worker import main as serve_as_worker
from tests.server.media_files import picture, sound
from tests.server.media_probe import probe
from tests.server.service import FAKE, Service, environment, running, working
from tests.server.stream_client import pcm, stream_to

LONG = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(60.0))}
SHORT = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(0.2))}
SLOW, QUICK = {"size": "1024"}, {"size": "128"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def works(service: Service) -> bool:
    with service.client() as client:
        response = client.post("/animate", files=SHORT, data=QUICK)
        return response.status_code == 200 and len(probe(response.content).times_s) == 5


@pytest.fixture(scope="module")
def narrow() -> Iterator[Service]:
    """A service with place for one job."""
    with running({**FAKE, "FADA_MAX_JOBS": "1", "FADA_SESSIONS_PER_WORKER": "1"}) as service:
        yield service


def test_running_jobs_finish_within_the_drain_time_and_none_start() -> None:
    files = {**LONG, "audio": ("a.flac", sound(4.0))}
    with (
        running({**FAKE, "FADA_DRAIN_S": "60"}) as service,
        stream_to(service.url) as stream,
        service.client() as client,
        client.stream("POST", "/animate", files=files, data=QUICK) as response,
    ):
        stream.start(idle=True)
        stream.until("fragment")
        chunks = response.iter_bytes()
        received = next(chunks)
        service.process.send_signal(signal.SIGTERM)
        assert until(lambda: not accepts(service.url))
        received += b"".join(chunks)
        assert probe(received).video_s == pytest.approx(4.0)
        stream.send_audio(pcm(1.0))
        done = stream.finish()
        assert done["duration_s"] > 1.0
        assert stream.video().video_s == pytest.approx(done["duration_s"], abs=0.041)
        assert service.process.wait(20) == 0


def test_jobs_beyond_the_drain_time_are_cut() -> None:
    with (
        running({**FAKE, "FADA_DRAIN_S": "1"}) as service,
        stream_to(service.url) as stream,
        service.client() as client,
        client.stream("POST", "/animate", files=LONG, data=SLOW) as response,
    ):
        stream.start(idle=True)
        stream.until("fragment")
        chunks = response.iter_bytes()
        next(chunks)
        children = service.children()
        service.process.send_signal(signal.SIGTERM)
        told_s = time.monotonic()
        assert stream.close_code() == 1012  # service restart
        assert time.monotonic() - told_s > 0.9
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
        assert service.process.wait(20) == 0
        assert not any(alive(child) for child in children)


def accepts(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5.0).is_success
    except httpx.TransportError:
        return False


def test_a_killed_worker_is_replaced_and_its_job_resumes(narrow: Service) -> None:
    (worker,) = narrow.workers()
    files = {**LONG, "audio": ("a.flac", sound(12.0))}
    settings = {"size": "256", "seed": "7"}
    with (
        narrow.client() as client,
        client.stream("POST", "/animate", files=files, data=settings) as response,
    ):
        chunks = response.iter_bytes()
        received = next(chunks)
        os.kill(worker, signal.SIGKILL)
        received += b"".join(chunks)
        alone = client.post("/animate", files=files, data=settings)
    assert narrow.workers() != [worker]
    seen, expected = probe(received), probe(alone.content)
    assert seen.video_s == pytest.approx(12.0)
    assert seen.times_s == expected.times_s
    assert np.abs(seen.pictures - expected.pictures).max() < 2
    assert (seen.sound_s, len(seen.sound)) == (expected.sound_s, len(expected.sound))


def test_requests_wait_for_a_worker_that_starts(narrow: Service) -> None:
    (worker,) = narrow.workers()
    os.kill(worker, signal.SIGKILL)
    with narrow.client() as client:
        assert until(lambda: "a worker is starting" in client.get("/readyz").text)
        assert works(narrow)


def test_a_disconnect_frees_the_place(narrow: Service) -> None:
    with narrow.client() as client:
        with client.stream("POST", "/animate", files=LONG, data=SLOW) as response:
            chunks = response.iter_bytes()
            next(chunks)
            job = response.headers["x-job-id"]
        assert until(lambda: client.get(f"/jobs/{job}").json()["status"] == "cancelled")
        assert works(narrow)


def test_a_full_service_is_busy_with_retry_after(
    narrow: Service,
) -> None:
    with narrow.client() as client:
        with client.stream("POST", "/animate", files=LONG, data=SLOW) as response:
            chunks = response.iter_bytes()
            next(chunks)
            with narrow.client() as other:
                refused = other.post("/animate", files=SHORT, data=QUICK)
        assert (refused.status_code, refused.json()["code"]) == (429, "busy")
        assert int(refused.headers["retry-after"]) > 0
        assert until(lambda: works(narrow))


def test_two_services_on_one_machine_are_independent_and_sigint_stops_all_of_one(
    narrow: Service,
) -> None:
    with running({**FAKE, "FADA_MODELS": "other"}) as other:
        with narrow.client() as here, other.client() as there:
            assert here.get("/models").json()["default"] == "fake"
            assert there.get("/models").json()["default"] == "other"
            made = here.post("/avatars", files={"portrait": ("p.png", picture())}).json()
            assert there.get(f"/avatars/{made['avatar_id']}").status_code == 404
        children = other.children()
        assert len(children) == 2
        assert other.stop(signal.SIGINT) == 0
        assert not any(alive(child) for child in children)
    assert works(narrow)


def test_no_child_outlives_a_killed_service(narrow: Service) -> None:
    """Of the tests that need `narrow` it is the last."""
    children = narrow.children()
    narrow.process.kill()
    narrow.process.wait(10)
    assert until(lambda: not any(alive(child) for child in children))


def memory_kb(process_id: int, field: str) -> int:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_speech() -> None:
    files = {"portrait": ("p.png", picture()), "audio": ("a.flac", sound(900.0, silent=True))}
    with running(FAKE) as service, service.client() as client:
        assert works(service)
        processes = [service.process.pid, *service.children()]
        before = [memory_kb(process, "VmRSS") for process in processes]
        with client.stream("POST", "/animate", files=files, data=QUICK) as response:
            length = sum(map(len, response.iter_bytes()))
        assert length > 1e6
        peaks = [memory_kb(process, "VmHWM") for process in processes]
        assert max(p - b for p, b in zip(peaks, before, strict=True)) < 30_000


def test_a_model_that_fails_to_load_stops_the_service_with_the_reason() -> None:
    done = fada({"FADA_PIPELINE": "tests.server.nowhere:load", "FADA_MODELS": "x"}, "serve")
    assert done.returncode == 1
    assert "tests.server.nowhere" in done.stderr
    assert "before it was ready" in done.stderr
    assert done.stdout == ""


def test_a_port_in_use_fails_at_once() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        done = fada(FAKE, "serve", port=listener.getsockname()[1])
    assert done.returncode == 1
    assert "in use" in done.stderr and "Traceback" not in done.stderr


def test_api_and_worker_as_separate_processes() -> None:
    with embedded_server(valkey_program()) as broker:
        settings = {**FAKE, "FADA_REDIS_URL": broker.url}
        with running(settings, "api") as api, api.client() as client:
            refused = client.post("/animate", files=SHORT, data=QUICK)
            assert (refused.status_code, refused.json()["code"]) == (503, "no_worker")
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
            with working(settings) as worker:
                assert until(lambda: client.get("/readyz").status_code == 200)
                assert works(api)
                files = {**LONG, "audio": ("a.flac", sound(4.0))}
                with client.stream("POST", "/animate", files=files, data=QUICK) as response:
                    chunks = response.iter_bytes()
                    received = next(chunks)
                    worker.terminate()  # it claims no more jobs and finishes its own
                    received += b"".join(chunks)
                assert probe(received).video_s == pytest.approx(4.0)
                assert worker.wait(20) == 0
            assert client.get("/readyz").status_code == 503
            broker.child.kill()
            gone = client.post("/animate", files=SHORT, data=QUICK)
            assert (gone.status_code, gone.json()["code"]) == (503, "no_worker")


def test_the_service_stops_when_its_broker_dies() -> None:
    with running(FAKE) as service:
        workers = service.workers()
        (valkey,) = set(service.children()) - set(workers)
        os.kill(valkey, signal.SIGKILL)
        assert service.process.wait(20) == 1
        assert not any(alive(worker) for worker in workers)


def test_one_worker_per_core_and_at_least_two() -> None:
    assert [worker_count(None, cores) for cores in (1, 2, 6, 64)] == [2, 2, 6, 8]
    assert worker_count(1, 64) == 1
    assert worker_count(None, 64, 3) == 3
    assert worker_count(4, 64, 2) == 4


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def spawn(command: Sequence[str], settings: Mapping[str, str]) -> None:
        taken.append(settings["FADA_DEVICES"])
        raise RuntimeError("enough")

    monkeypatch.setattr("server.process.spawn", spawn)
    supervisor = Supervisor(None, "redis://", 3, devices=("0", "2"))  # type: ignore[arg-type]
    with pytest.raises(ExceptionGroup):
        asyncio.run(supervisor.watch())
    assert taken == ["0", "2", "0"]


def test_gpus_are_used_where_tensorrt_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-8f")
    monkeypatch.setattr("server.process.find_spec", lambda name: None)
    assert process.visible_gpus() == ()
    monkeypatch.setattr("server.process.find_spec", lambda name: name == "tensorrt_rtx")
    assert process.visible_gpus() == ("1", "GPU-8f")
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert process.visible_gpus() == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    there = len([path for path in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", path.name)])
    assert process.visible_gpus() == tuple(map(str, range(there)))


def test_one_worker_takes_one_gpu() -> None:
    with pytest.raises(SetupError, match="FADA_DEVICES = 0,1, expected one GPU for each"):
        serve_as_worker(Settings(devices=("0", "1")), "redis://")  # type: ignore[call-arg]


@pytest.mark.parametrize("half", ["api", "worker"])
def test_api_and_worker_need_a_broker(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"fada.cli.{half}.start_logging", lambda *_: None)
    monkeypatch.delenv("FADA_REDIS_URL", raising=False)
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="FADA_REDIS_URL"):
        main([half])


def fada(settings: dict[str, str], command: str, port: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fada.cli", command, "--port", str(port)],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
