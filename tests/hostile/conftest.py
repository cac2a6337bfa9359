"""A real service with a live session that attacks must not disturb.

With `FADA_TEST_URL`, only the doors of the service at that address are attacked (`test_doors.py`);
`FADA_TEST_DOORS` names some of them (comma-separated), `FADA_TEST_KEY` is an API key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bench.doors import Address
from server.broker.embedded import embedded_server, valkey_program
from tests.conftest import EXAMPLES
from tests.server.service import FAKE, Service, running
from tests.server.stream_client import pcm, stream_to


@pytest.fixture(scope="package")
def broker() -> Iterator[str]:
    """The queue of `service`; APIs with other settings are put before it, at no worker's cost."""
    if "FADA_TEST_URL" in os.environ:
        pytest.skip("needs a service of its own, and FADA_TEST_URL names another")
    with embedded_server(valkey_program()) as broker:
        yield broker.url


@pytest.fixture(scope="package")
def service(broker: str) -> Iterator[Service]:
    with running({**FAKE, "FADA_WORKERS": "2", "FADA_REDIS_URL": broker}) as service:
        yield service


@pytest.fixture
def at(request: pytest.FixtureRequest) -> Iterator[Address]:
    """The address under attack; a live session continues through the test, as do its workers."""
    if url := os.environ.get("FADA_TEST_URL"):
        key = os.environ.get("FADA_TEST_KEY")
        address = Address(url, {"X-API-Key": key} if key else {})
        with undisturbed(address.url, address.headers):
            yield address
        return
    yield Address(request.getfixturevalue("unharmed").url)


@pytest.fixture
def unharmed(service: Service) -> Iterator[Service]:
    """The service: its workers survive the test, and a live session continues through it."""
    workers = service.workers()
    with undisturbed(service.url):
        yield service
    assert service.workers() == workers


@contextmanager
def undisturbed(url: str, headers: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run another client's live session, whose video must be complete at the end of the block."""
    with stream_to(url, headers) as neighbour:
        neighbour.start((EXAMPLES / "presenter.jpg").read_bytes(), idle=True)
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
