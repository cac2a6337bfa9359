"""Shared by all tests: where example and optional test data lie, and how they share two cores."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import settings

from tests.server.service import FAKE, KEYS, ORIGIN, Service, running

# Files, or folders of them, that share a service or heavy imports: each group runs in one process.
# The longest begin first, so that no process is left with one when the others are done.
TOGETHER = (
    ("tests/hostile/",),
    (
        "tests/e2e/test_animate.py",
        "tests/e2e/test_firefox.py",
        "tests/e2e/test_stream.py",
        "tests/e2e/test_studio.py",
    ),
    ("tests/e2e/test_chaos.py", "tests/e2e/test_failover.py"),
    ("tests/training/",),
    ("tests/engines/",),
    (
        "tests/server/api/test_jobs.py",
        "tests/server/api/test_rest.py",
        "tests/server/api/test_stream_contract.py",
    ),
    ("tests/docs/test_commands.py",),
    (
        "tests/clients/test_python.py",
        "tests/docs/test_realtime.py",
        "tests/fada/test_cli.py",
        "tests/fada/test_local.py",
        "tests/server/api/test_access.py",
    ),
    ("tests/server/test_run.py",),
    ("tests/e2e/test_video_student.py",),
)
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

# A first example may load or compile something, and other processes share the cores.
settings.register_profile("fada", deadline=None)
settings.load_profile("fada")


@pytest.fixture(scope="session")
def examples() -> Path:
    """The portraits and the speech that ship with the project."""
    return EXAMPLES


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The optional collection of portraits and voices, `FADA_TEST_DATA`; skips without it."""
    place = os.environ.get("FADA_TEST_DATA")
    if not place:
        pytest.skip("FADA_TEST_DATA is not set")
    return Path(place)


@pytest.fixture(scope="session")
def guarded() -> Iterator[Service]:
    """A service that asks for one of `KEYS` and lets pages of `ORIGIN` call."""
    settings = {"FADA_API_KEYS": ",".join(KEYS), "FADA_CORS_ORIGINS": f"{ORIGIN},https://b.example"}
    with running({**FAKE, **settings}) as service:
        yield service


def pytest_configure(config: pytest.Config) -> None:
    """Engines are built and kept for this run alone, and shared by all of its processes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="fada-engines-")
        config.add_cleanup(folder.cleanup)
        os.environ["FADA_ENGINES"] = folder.name
    if config.getoption("numprocesses", None):
        # Drawing code is compiled once, while the test processes collect, and not in each of them.
        compiling = subprocess.Popen(
            [sys.executable, "-c", "from model.motion.space import MotionSpace; MotionSpace()"],
            cwd=config.rootpath,
            stderr=subprocess.DEVNULL,
        )
        config.add_cleanup(lambda: compiling.wait() and None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several test processes, run a file in one of them: its tests share set-ups.

    By a scheduler of our own: xdist 3.8 ignores its ``xdist_group`` under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return next((group[0] for group in TOGETHER if path.startswith(group)), path)

        def _assign_work_unit(self, node: Any) -> None:
            longest = next((group[0] for group in TOGETHER if group[0] in self.workqueue), None)
            if longest is not None:
                self.workqueue.move_to_end(longest, last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)


_locked: list[TextIO] = []  # by `_turn` for this process, until it is closed


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Among several test processes, tests marked ``realtime`` have the machine to themselves."""
    if "PYTEST_XDIST_WORKER" not in os.environ or _locked:
        return
    folder = tmp_path_factory.getbasetemp().parent  # of all test processes
    with (folder / "gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # no test starts while one waits to be alone
        running = (folder / "running").open("w")
        fcntl.flock(running, fcntl.LOCK_EX if _realtime(request.node) else fcntl.LOCK_SH)
        _locked.append(running)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """A process that has the machine to itself keeps it for the ``realtime`` tests that follow."""
    result = yield
    if not (_realtime(item) and nextitem is not None and _realtime(nextitem)):
        while _locked:
            _locked.pop().close()
    return result


def _realtime(item: pytest.Item) -> bool:
    return item.get_closest_marker("realtime") is not None
