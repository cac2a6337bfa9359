"""Room for uploads and videos, seen by a client of a real service."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.media_files import overstated_sound
from tests.server.media_probe import probe
from tests.server.rest_client import animate, problem
from tests.server.service import FAKE, Service, running

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def service(data: Path) -> Iterator[Service]:
    """Little room in Redis, and more on disk."""
    limits = {"FADA_REDIS_BYTES": "2000000", "FADA_DATA_BYTES": "100000000"}
    with running({**FAKE, **limits, "FADA_DATA": str(data)}) as service:
        yield service
    assert not list(data.iterdir())  # its Redis is gone, and with it all that referred to files


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def peak_bytes(service: Service) -> int:
    """The most memory that the API process ever had."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


def test_a_video_larger_than_redis_allows_plays_with_ranges(
    client: httpx.Client, data: Path
) -> None:
    asked = animate(client, audio=overstated_sound(2.0, 40), headers=ASYNC)
    assert asked.status_code == 202, asked.text
    address = asked.headers["location"]
    followed = client.get(f"{address}/video")  # while it is made
    assert probe(followed.content).video_s == pytest.approx(2.0)
    deadline = time.monotonic() + 20
    while client.get(address).json()["status"] != "done":
        assert time.monotonic() < deadline
    (file,) = data.glob(f"*/{address.rpartition('/')[2]}.*")
    whole = client.get(f"{address}/video").content
    assert file.read_bytes() == whole[-file.stat().st_size :]
    part = client.get(f"{address}/video", headers={"Range": "bytes=5000-9999"})
    assert (part.status_code, part.content) == (206, whole[5000:10000])
    assert client.delete(address).status_code == 204
    assert not file.exists()


def test_what_never_fits_is_too_large(client: httpx.Client) -> None:
    answer = animate(client, audio=overstated_sound(2.0, 100), size="1024", headers=ASYNC)
    assert problem(answer) == (413, "too_large")
    assert "bytes on disk, expected at most 100000000" in answer.json()["detail"]
    read_as_made = animate(client, audio=overstated_sound(0.4, 100))
    assert read_as_made.status_code == 200


def test_the_api_needs_no_memory_for_an_upload(service: Service, client: httpx.Client) -> None:
    files = {"portrait": ("p.png", bytes(1 << 20))}
    assert problem(client.post("/avatars", files=files)) == (415, "unsupported_media")
    before = peak_bytes(service)
    files = {"portrait": ("p.png", bytes(60 << 20))}
    assert problem(client.post("/avatars", files=files)) == (413, "too_large")
    assert peak_bytes(service) - before < 12 << 20
