"""docker-compose.yml as `docker compose` itself understands it, and what it promises."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from server.broker.embedded import valkey_program
from server.settings import Settings
from server.worker import engines
from tests.docker.images import ROOT, chain, figures, program, read

_COMPOSE = program("docker-compose")
pytestmark = pytest.mark.skipif(_COMPOSE is None, reason="no docker-compose for this platform")

# What a container has no use for, by role: it is started by other means, or the other's.
API_ONLY = {
    "api_keys", "requests_per_minute", "sessions_per_client", "cors_origins", "trusted_proxies",
    "max_jobs", "max_upload_bytes", "max_portrait_bytes", "keys_share", "hosts",
    "max_connections", "connections_per_address",
}  # fmt: skip
NOWHERE = {"ice_servers", "webrtc_networks"}  # the API's image has no WebRTC
BOTH = {
    "redis_url",
    "log_format",
    "drain_s",
    "job_ttl_s",
    "max_audio_s",
    "redis_bytes",
    "data",
    "data_bytes",
    "client_share",
}


PASSWORD = "not-a-word"


def compose(**environment: str) -> dict[str, Any]:
    """The whole model, all profiles, after interpolation. Warnings, of unset variables, fail."""
    own = {n: v for n, v in os.environ.items() if not n.startswith(("FADA_", "COMPOSE_"))}
    done = subprocess.run(
        [str(_COMPOSE), "--profile", "*", "config", "--format", "json"],
        cwd=ROOT, env={**own, "REDIS_PASSWORD": PASSWORD, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(compose()["services"])


def test_it_is_made_of_these_services(services: dict[str, Any]) -> None:
    profiles = {name: tuple(one.get("profiles", ())) for name, one in services.items()}
    assert profiles == {
        "redis": (), "api": (), "worker": (), "worker-gpu": ("gpu",),
        "prometheus": ("monitoring",), "grafana": ("monitoring",),
    }  # fmt: skip
    # `--scale worker=N` needs that nothing of it can be there only once.
    assert not {"container_name", "ports", "hostname"} & set(services["worker"])


def test_every_service_is_hardened_and_limited(services: dict[str, Any]) -> None:
    for name, one in services.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert int(one["mem_limit"]) > 0 and one["pids_limit"] > 0, name
        assert one["restart"] == "unless-stopped", name
        assert "privileged" not in one, name
        for port in one.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
    assert services["redis"]["user"].split(":")[0] not in (
        "0",
        "root",
    )  # as other images do


def test_images_are_built_here_or_pinned(services: dict[str, Any]) -> None:
    for one in services.values():
        if "build" in one:
            stages = read(ROOT / one["build"]["dockerfile"])
            assert one["build"].get("target", "final") in stages
        else:
            assert re.fullmatch(r"[\w/.-]+:v?\d+\.\d+\.\d+[\w.-]*", one["image"])


def test_every_setting_reaches_its_role(services: dict[str, Any]) -> None:
    every = set(Settings.model_fields)
    given = {
        role: {n.removeprefix("FADA_").lower() for n in services[role]["environment"]
               if n.startswith("FADA_")}
        for role in ("api", "worker", "worker-gpu")
    }  # fmt: skip
    assert given["api"] == API_ONLY | BOTH
    assert given["worker"] == given["worker-gpu"] == every - API_ONLY - NOWHERE


def test_settings_come_from_the_caller_and_defaults_stay_the_services() -> None:
    with_keys = compose(FADA_API_KEYS="a,b", FADA_DRAIN_S="30", STOP_GRACE="40s", BIND="0.0.0.0")
    api = with_keys["services"]["api"]
    assert api["environment"]["FADA_API_KEYS"] == "a,b"
    assert api["stop_grace_period"] == "40s"
    assert api["ports"][0]["host_ip"] == "0.0.0.0"
    assert compose()["services"]["api"]["environment"]["FADA_API_KEYS"] is None  # not set at all


def test_workers_know_how_many_share_the_machine() -> None:
    for role, count, model in (
        ("worker", 2, compose()),
        ("worker", 3, compose(WORKERS="3")),
        ("worker-gpu", 1, compose()),
        ("worker-gpu", 2, compose(GPU_WORKERS="2")),
    ):
        worker = model["services"][role]
        assert worker["scale"] == count
        assert worker["environment"]["FADA_WORKERS"] == str(count)


def test_there_is_time_to_drain(services: dict[str, Any]) -> None:
    drain_s = Settings.model_fields["drain_s"].default
    for role in ("api", "worker", "worker-gpu"):
        grace = services[role]["stop_grace_period"]
        assert float(grace.removesuffix("s")) >= drain_s + 5, role


def test_redis_is_bounded_and_keeps_nothing(services: dict[str, Any]) -> None:
    redis = services["redis"]
    shell, flag, line = redis["command"]
    assert (shell, flag) == ("sh", "-c")
    assert PASSWORD not in line
    kept, server = line.replace("$$", "$").split(" | ")
    assert kept == 'echo "requirepass $REDIS_PASSWORD"'
    assert server == (
        'exec valkey-server - --save "" --appendonly no --maxmemory 1gb '
        "--maxmemory-policy noeviction"
    )
    assert redis["environment"] == {"REDIS_PASSWORD": PASSWORD}
    assert int(redis["mem_limit"]) >= 1.4 * 2**30
    assert "ports" not in redis and list(redis["networks"]) == ["inner"]
    for role in ("api", "worker", "worker-gpu"):
        assert services[role]["depends_on"]["redis"]["condition"] == "service_healthy"
        url = services[role]["environment"]["FADA_REDIS_URL"]
        assert url == f"redis://:{PASSWORD}@redis:6379/0"
    assert "valkey-cli ping" in redis["healthcheck"]["test"][1]


def test_without_a_password_nothing_starts() -> None:
    own = {n: v for n, v in os.environ.items() if n != "REDIS_PASSWORD"}
    command = [str(_COMPOSE), "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert "required variable REDIS_PASSWORD is missing" in done.stderr
    assert not done.stdout


def test_the_line_that_starts_redis_starts_one_with_a_password(tmp_path: Path) -> None:
    """By the server that comes with the project, on a socket instead of a port."""
    line = compose()["services"]["redis"]["command"][2].replace("$$", "$")
    line = line.replace("valkey-server", f"{valkey_program()} ", 1)
    path = tmp_path / "s"
    line += f" --port 0 --unixsocket {path}"
    server = subprocess.Popen(
        ["sh", "-c", line], env={**os.environ, "REDIS_PASSWORD": PASSWORD}, cwd=tmp_path,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        with redis.Redis(unix_socket_path=str(path), password=PASSWORD) as client:
            for _ in range(200):
                with contextlib.suppress(redis.ConnectionError):
                    assert client.ping()
                    break
                time.sleep(0.02)
            assert client.config_get("maxmemory")["maxmemory"] == str(1 << 30)
        with (
            redis.Redis(unix_socket_path=str(path)) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the shell's child as well
        server.wait(10)


def test_workers_and_figures_reach_nothing_outside() -> None:
    model = compose()
    networks = {name: set(one["networks"]) for name, one in model["services"].items()}
    for name in ("inner", "monitoring"):
        assert model["networks"][name]["internal"] is True
    assert networks == {
        "redis": {"inner"}, "worker": {"inner"}, "worker-gpu": {"inner"},
        "api": {"inner", "outer", "monitoring"},
        "prometheus": {"monitoring"}, "grafana": {"monitoring", "outer"},
    }  # fmt: skip


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    for one in services.values():
        for volume in one.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists()
                assert volume["read_only"] is True


def test_the_gpu_is_asked_for(services: dict[str, Any]) -> None:
    resources = services["worker-gpu"]["deploy"]["resources"]
    (device,) = resources["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    own = environment_of("gpu")
    capabilities = set(own["NVIDIA_DRIVER_CAPABILITIES"].split(","))
    assert capabilities == {"compute", "utility", "video"}  # CUDA, nvidia-smi, NVENC
    assert own["NVIDIA_VISIBLE_DEVICES"] == "all"


@pytest.mark.parametrize("extra", ["tensorrt", "tensorrt-datacenter"])
def test_the_gpu_image_has_tensorrt(extra: str) -> None:
    given = {} if extra == "tensorrt" else {"TENSORRT": extra}
    assert compose(**given)["services"]["worker-gpu"]["build"]["args"] == {"TENSORRT": extra}
    build = read(ROOT / "docker/worker.Dockerfile")["build-gpu"]
    assert build.last("ARG").split("=")[0] == "TENSORRT"
    assert any("-r tensorrt.txt" in value for name, value in build.steps if name == "RUN")


@pytest.mark.parametrize(("role", "target"), [("worker", "cpu"), ("worker-gpu", "gpu")])
def test_what_a_worker_writes_is_a_volume_of_its_user(
    services: dict[str, Any], role: str, target: str
) -> None:
    """On a read-only root, and without a home: engines, compiled kernels, CUDA's cache."""
    volumes = {v["target"]: v["source"] for v in services[role]["volumes"]
               if v["type"] == "volume" and not v.get("read_only")}  # fmt: skip
    data = {"/var/lib/fada/data": "data"}
    assert volumes == {"/var/cache/fada": "cache", "/var/lib/fada/engines": "engines", **data}
    own = environment_of(target)
    for name in ("FADA_ENGINES", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH"):
        place = own.get(name)
        assert place is None or any(Path(place).is_relative_to(v) for v in volumes), name
    assert own["FADA_ENGINES"] == "/var/lib/fada/engines"
    # A new volume takes owner and mode of the image's folder.
    runtime = read(ROOT / "docker/worker.Dockerfile")["runtime"]
    made = next(value for name, value in runtime.steps if name == "RUN")
    assert f"--owner={runtime.last('USER').split(':')[0]}" in made
    assert set(volumes) <= set(made.split())


def test_api_and_workers_share_the_folder_of_large_files(services: dict[str, Any]) -> None:
    for role in ("api", "worker", "worker-gpu"):
        assert services[role]["environment"]["FADA_DATA"] == "/var/lib/fada/data"
        shared = [v for v in services[role]["volumes"] if v["target"] == "/var/lib/fada/data"]
        assert [v["source"] for v in shared] == ["data"]
    stages = read(ROOT / "docker/api.Dockerfile")["final"]
    made = next(value for name, value in stages.steps if name == "RUN")
    assert f"--owner={stages.last('USER').split(':')[0]}" in made and "/var/lib/fada/data" in made


def environment_of(target: str) -> dict[str, str]:
    stages = chain(read(ROOT / "docker/worker.Dockerfile"), target)
    pairs = [v for stage in stages for name, v in stage.steps if name == "ENV"]
    return dict(pair.split("=", 1) for pair in " ".join(pairs).split())


def test_a_worker_that_builds_engines_is_not_unhealthy() -> None:
    check = read(ROOT / "docker/worker.Dockerfile")["gpu"].last("HEALTHCHECK")
    minutes = re.search(r"--start-period=(\d+)m", check)
    assert minutes is not None and 60 * int(minutes[1]) >= engines._TIMEOUT_S


def test_the_dashboard_asks_for_figures_that_exist() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/fada.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {word for query in queries for word in re.findall(r"\b(?:fada|process)_\w+", query)}
    assert used <= figures()
    assert {
        "fada_sessions", "fada_queue_jobs", "fada_batch_windows_bucket",
        "fada_stage_seconds_bucket", "fada_first_fragment_seconds_bucket",
        "fada_mic_to_fragment_seconds_bucket", "fada_real_time_factor_bucket",
        "fada_fragments_total", "fada_errors_total", "fada_live_places", "fada_live_load_bucket",
    } <= used  # fmt: skip
    assert {p["datasource"]["uid"] for p in dashboard["panels"]} == {"prometheus"}
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    provisioning = ROOT / "docker/grafana/provisioning"
    assert "uid: prometheus" in (provisioning / "datasources/prometheus.yml").read_text()
