"""The images: read and linted in every run; installed and run for real where time allows."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker.images import ROOT, Stage, chain, command, install, program, read, sent, under
from tests.server.media_probe import probe
from tests.server.service import stopping

API, WORKER = ROOT / "docker/api.Dockerfile", ROOT / "docker/worker.Dockerfile"
IMAGES = [(API, "final"), (WORKER, "cpu"), (WORKER, "gpu")]
HEAVY = {"torch", "numpy", "numba", "av", "opencv-python-headless", "ai-edge-litert", "pillow"}
_USER = 10001
_HADOLINT = program("hadolint")

# The libraries that python:slim on Debian 12 has, as far as wheels ask for them.
SLIM = {
    "ld-linux-x86-64.so.2", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libmvec.so.1",
    "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libutil.so.1", "libz.so.1",
}  # fmt: skip
# Parts that are not used: for accelerators, in LiteRT and OpenVINO; two of Numba's ways to thread.
UNUSED = re.compile(
    r"/ai_edge_litert/vendors/|/libopenvino_intel_gpu_plugin"
    r"|/numba/np/ufunc/(tbb|omp)pool"
)


def project() -> dict[str, list[str]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    base = [*table["dependencies"], *client["dependencies"]]
    return {"": base, **table["optional-dependencies"]}


def closure(requirements: list[str]) -> set[str]:
    """The names of all packages that these need, from what is installed here."""
    found, left = set[str](), [Requirement(text) for text in requirements]
    while left:
        one = left.pop()
        key = f"{canonicalize_name(one.name)}[{','.join(sorted(one.extras))}]"
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(one.name) or []:
            need = Requirement(text)
            extras = [*one.extras, ""]
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                left.append(need)
    return {key.partition("[")[0] for key in found}


def test_the_apis_image_needs_nothing_heavy() -> None:
    asked = read(API)["build"]
    run = " ".join(value for name, value in asked.steps if name == "RUN")
    assert "['serve']" not in run
    needed = closure(project()[""] + project()["otel"])
    assert "fastapi" in needed and "protobuf" in needed
    assert not needed & HEAVY
    assert closure(project()["serve"]) >= HEAVY  # the check can fail


@pytest.mark.skipif(_HADOLINT is None, reason="no hadolint for this platform")
@pytest.mark.parametrize("dockerfile", [API, WORKER])
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    linted = subprocess.run(
        [str(_HADOLINT), "--failure-threshold", "warning", str(dockerfile)], capture_output=True
    )
    assert linted.returncode == 0, linted.stdout.decode()


@pytest.mark.parametrize(("dockerfile", "name"), IMAGES)
def test_images_are_pinned_unprivileged_and_checked(dockerfile: Path, name: str) -> None:
    stages = read(dockerfile)
    parts = chain(stages, name)
    for stage in stages.values():
        assert stage.base in stages or (stage.base.count(":") == 1 and "latest" not in stage.base)
    steps = [step for stage in parts for step in stage.steps]
    assert [value for key, value in steps if key == "USER"] == [f"{_USER}:{_USER}"]
    assert command(stages, name, "ENTRYPOINT") == ["fada"]
    assert command(stages, name, "HEALTHCHECK")[:2] == ["fada", "health"]
    assert not any("pip install" in value for key, value in steps if key == "RUN")  # two stages
    (source,) = [value for key, value in steps if key == "COPY"]
    assert source.split() in [
        [f"--from={build}", "/opt/fada", "/opt/fada"] for build in stages if "build" in build
    ]


def test_only_the_product_is_sent_to_the_builder() -> None:
    for path in (
        "server/api/app.py", "server/static/index.html", "model/weights/MODEL_CARD.md",
        "model/weights/motion-balanced.safetensors", "clients/python/fada_client/version.py",
    ):  # fmt: skip
        assert sent(path), path
    for path in (
        ".git/HEAD", ".venv/bin/python", "tests/conftest.py", "docs/experiments/motion.md", ".env",
        "server/__pycache__/app.cpython-311.pyc", "training/teacher.py", "runs/x",
        "model/weights/motion-teacher.safetensors", "model/weights/video-tiny.safetensors",
        "secret.key",
    ):  # fmt: skip
        assert not sent(path), path


IMAGES_PYTHON = "3.11"


def test_the_constraints_pin_what_the_images_need() -> None:
    lines = (ROOT / "docker/constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line}
    assert all(str(pin.specifier).startswith("==") for pin in pins.values())
    tensorrt = [text for text in project()["tensorrt"] if not text.startswith("fada")]
    for text in (
        project()[""] + project()["serve"] + project()["c2pa"] + project()["otel"] + tensorrt
    ):
        need = Requirement(text)
        if need.name == "torch":  # its index decides which build it is
            continue
        if need.marker and not need.marker.evaluate({"python_version": IMAGES_PYTHON}):
            continue
        assert canonicalize_name(need.name) in pins, (
            f"docker/constraints.txt wants a pin for {text}"
        )
        pin = pins[canonicalize_name(need.name)]
        assert need.specifier.contains(str(pin.specifier).removeprefix("==")), text


# From here on: installed and run exactly as in the Dockerfiles.


@contextmanager
def installed(dockerfile: Path, build: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fada-image-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        install(dockerfile, build, root, arguments={"TORCH_INDEX": ""})
        for volume in ("var/cache/fada", "var/lib/fada/engines"):
            (root / volume).mkdir(parents=True)
        yield root


@pytest.fixture(scope="module")
def api() -> Iterator[Path]:
    with installed(API, "build") as root:
        yield root


@pytest.fixture(scope="module")
def worker() -> Iterator[Path]:
    with installed(WORKER, "build-cpu") as root:
        yield root


@pytest.fixture(scope="module")
def gpu_worker() -> Iterator[Path]:
    with installed(WORKER, "build-gpu") as root:
        yield root


def packages(root: Path) -> set[str]:
    listed = subprocess.run(
        [root / "opt/fada/bin/python", "-m", "pip", "list", "--format=freeze"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {canonicalize_name(line.partition("==")[0]) for line in listed.stdout.split()}


@pytest.mark.slow
def test_the_apis_install_is_small(api: Path) -> None:
    assert not packages(api) & HEAVY
    bill = json.loads((api / "opt/fada/bill.cdx.json").read_text())
    named = {canonicalize_name(one["name"]) for one in bill["components"]}
    assert named >= packages(api) - {"fada", "fada-client", "pip", "setuptools"}
    megabytes = sum(f.stat().st_size for f in api.rglob("*") if f.is_file()) / 1e6
    assert megabytes < 150


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (Debian: binutils)")
def test_the_workers_libraries_are_all_there(worker: Path) -> None:
    """Nothing that its wheels link to is missing from the slim base image."""
    files = [f for f in (worker / "opt/fada").rglob("*.so*") if f.is_file()]
    own = {f.name for f in files}
    needed = set[str]()
    for file in files:
        if UNUSED.search(str(file)):
            continue
        headers = subprocess.run(["objdump", "-p", file], capture_output=True, text=True).stdout
        needed |= {line.split()[1] for line in headers.splitlines() if line.startswith("  NEEDED")}
    assert not needed - own - SLIM


@pytest.mark.slow
def test_the_gpu_worker_has_tensorrt_and_serves_without_a_card_as_well(gpu_worker: Path) -> None:
    before = written(gpu_worker)
    own = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    asked = subprocess.run(
        [gpu_worker / "opt/fada/bin/fada", "doctor", "--json"],
        env={**settings_of(WORKER, "gpu", gpu_worker), **own},
        cwd=gpu_worker / "opt/fada", capture_output=True, text=True,
    )  # fmt: skip
    said = json.loads(asked.stdout)
    pins = dict(line.split("==") for line in (ROOT / "docker/constraints.txt").read_text().split())
    names = {"tensorrt_rtx", "torch_tensorrt_rtx"}
    assert said["tensorrt"] == {name: pins[canonicalize_name(name)] for name in names}
    assert said["engines"]["path"] == under("/var/lib/fada/engines", gpu_worker)
    assert said["serves"] and asked.returncode == 0, said["problems"]
    assert written(gpu_worker) == before  # a read-only root is enough


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


def settings_of(dockerfile: Path, name: str, root: Path) -> dict[str, str]:
    stages: dict[str, Stage] = read(dockerfile)
    pairs = [v for s in chain(stages, name) for n, v in s.steps if n == "ENV"]
    text = under(" ".join(pairs).replace("$PATH", "/usr/bin:/bin"), root)
    return dict(pair.split("=", 1) for pair in text.split())


class Role:
    """One container's command, with nothing but its own environment."""

    def __init__(self, dockerfile: Path, name: str, root: Path, *, redis_url: str) -> None:
        self._stages, self._name, self._root = read(dockerfile), name, root
        self._environment = {**settings_of(dockerfile, name, root), "FADA_REDIS_URL": redis_url}
        # As where the root cannot be written.
        self._environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
        self._environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(root / "var/cache/fada")}

    def start(self, *extra: str) -> subprocess.Popen[bytes]:
        entry = command(self._stages, self._name, "ENTRYPOINT")
        return self._popen([*entry, *command(self._stages, self._name, "CMD"), *extra])

    def health(self, *extra: str) -> int:
        return self._popen([*command(self._stages, self._name, "HEALTHCHECK"), *extra]).wait(30)

    def _popen(self, words: list[str]) -> subprocess.Popen[bytes]:
        program = self._root / "opt/fada/bin" / words[0]
        return subprocess.Popen(
            [program, *words[1:]], env=self._environment, cwd=self._root / "opt/fada"
        )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server")
def test_both_roles_work_from_their_installs_over_a_real_redis(
    api: Path, worker: Path, examples: Path
) -> None:
    before = [written(root) for root in (api, worker)]
    redis_port, port = free_port(), free_port()
    url = f"redis://127.0.0.1:{redis_port}/0"
    with ExitStack() as stack:
        server = ["redis-server", "--port", str(redis_port), "--save", "", "--maxmemory", "1gb"]
        stack.enter_context(started(subprocess.Popen(server, stdout=subprocess.DEVNULL)))
        front, back = (
            Role(API, "final", api, redis_url=url),
            Role(WORKER, "cpu", worker, redis_url=url),
        )
        until(lambda: accepts(redis_port))
        assert front.health("--port", str(port)) == 1
        assert back.health() == 1
        serving = stack.enter_context(started(front.start("--port", str(port))))
        until(lambda: front.health("--port", str(port)) == 0)
        working = stack.enter_context(started(back.start()))
        until(lambda: back.health() == 0)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            with (examples / "monalisa.jpg").open("rb") as picture:
                sound = (examples / "speech.wav").read_bytes()[: 44 + 2 * 22050 * 2]
                files = {"portrait": picture, "audio": ("a.wav", sound)}
                made = client.post("/animate", files=files, data={"size": "256"})
            assert made.status_code == 200, made.text
            assert probe(made.content).video_s > 1
            assert client.get("/").status_code == 200
            assert "fada_stage_seconds" in client.get("/metrics").text
        working.send_signal(signal.SIGTERM)
        assert working.wait(20) == 0
        until(lambda: back.health() == 1)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0
        assert front.health("--port", str(port)) == 1
    assert [written(root) for root in (api, worker)] == before  # a read-only root is enough


def written(root: Path) -> set[tuple[str, int]]:
    """Every file of an image but those of its volume, and when it was written."""
    files = [f for f in (root / "opt/fada").rglob("*") if f.is_file()]
    return {(str(f), f.stat().st_mtime_ns) for f in files}


@contextmanager
def started(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with process, stopping(process):
        yield process


def accepts(port: int) -> bool:
    with socket.socket() as probing:
        return probing.connect_ex(("127.0.0.1", port)) == 0


def until(true: object, seconds: float = 120.0) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
