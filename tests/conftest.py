"""Shared by all tests: where example and optional test data lie, and how they share two cores."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes, run a file in one of them: its tests share set-ups."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture(autouse=True)
def _turn(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Among several test processes, tests marked ``realtime`` have the machine to themselves."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent  # of all test processes
    alone = request.node.get_closest_marker("realtime") is not None
    with (folder / "gate").open("w") as gate, (folder / "running").open("w") as running:
        fcntl.flock(gate, fcntl.LOCK_EX)  # no test starts while one waits to be alone
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
