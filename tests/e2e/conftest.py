"""The service that most of these tests talk to: one worker, with the students that ship."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.motion.space import MotionSpace
from tests.server.service import Service, running


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    MotionSpace()  # compiles what draws, and caches it: once, not in every worker at once
    with running({"FADA_WORKERS": "1"}) as service:
        yield service
