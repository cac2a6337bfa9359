"""The service that most tests of the contract use."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.media_files import sound
from tests.server.media_probe import probe
from tests.server.rest_client import animate
from tests.server.service import FAKE, Service, running

LIMITS = {"FADA_MAX_UPLOAD_BYTES": str(4 << 20), "FADA_MAX_PORTRAIT_BYTES": str(1 << 20)}
WIDE = {"FADA_MODELS": "fake,other", "FADA_SESSIONS_PER_WORKER": "4"}


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    with running({**FAKE, **LIMITS, **WIDE}) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A client; after the test the service must still animate."""
    with service.client() as client:
        yield client
        after = animate(client, audio=sound(0.05))
        assert after.status_code == 200, after.text
        assert len(probe(after.content).times_s) == 2
