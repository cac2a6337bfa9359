"""A real service with a live session that attacks must not disturb."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.server.service import FAKE, Service, running
from tests.server.stream_client import pcm, stream_to


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    with running({**FAKE, "FADA_WORKERS": "2"}) as service:
        yield service


@pytest.fixture
def unharmed(service: Service) -> Iterator[Service]:
    """The service: its workers survive the test, and a live session continues through it."""
    workers = service.workers()
    with undisturbed(service):
        yield service
    assert service.workers() == workers


@contextmanager
def undisturbed(service: Service, headers: dict[str, str] | None = None) -> Iterator[None]:
    """Run another client's live session, whose video must be complete at the end of the block."""
    with stream_to(service.url, headers) as neighbour:
        neighbour.start(idle=True)
        neighbour.until("fragment")
        yield
        neighbour.send_audio(pcm(0.4))
        neighbour.finish()
    assert np.diff(neighbour.video().times_s) == pytest.approx(0.04)


@pytest.fixture(scope="session")
def cases() -> Path:
    """The optional collection of files that once failed (`FADA_TEST_CASES`); skips without it."""
    place = os.environ.get("FADA_TEST_CASES")
    if not place:
        pytest.skip("FADA_TEST_CASES is not set")
    return Path(place)
