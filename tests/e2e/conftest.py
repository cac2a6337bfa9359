"""The service that most of these tests talk to: as it comes, with the students that ship."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.service import Service, running


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with running({}) as service:
        yield service
