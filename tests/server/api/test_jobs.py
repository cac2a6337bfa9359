"""Jobs over REST: created, followed, cancelled and limited."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.video import byte_range
from server.errors import ServiceError
from tests.server.media_files import NO_FACE, picture, sound
from tests.server.media_probe import probe
from tests.server.rest_client import animate, problem
from tests.server.service import FAKE, running


def test_an_asynchronous_job(client: httpx.Client) -> None:
    response = animate(client, audio=sound(4.0), headers={"Prefer": "respond-async"}, seed="5")
    assert response.status_code == 202
    address = response.headers["location"]
    assert response.json()["status"] in {"queued", "running"}
    following = client.get(f"{address}/video")  # while it is being made
    assert following.headers["x-seed"] == "5"
    assert probe(following.content).video_s == pytest.approx(4.0)
    job = client.get(address).json()
    assert job == {
        "id": address.split("/")[-1],
        "status": "done",
        "progress": 1.0,
        "frames": 100,
        "duration_s": 4.0,
        "output": "video",
        "warnings": [],
        "error": None,
    }
    assert client.get(f"{address}/video").content == following.content
    assert following.content == animate(client, audio=sound(4.0), seed="5").content


def test_a_finished_video_is_served_by_ranges(client: httpx.Client) -> None:
    response = animate(client, audio=sound(1.0), headers={"Prefer": "respond-async"})
    address = f"{response.headers['location']}/video"
    client.get(address)  # until it is finished
    whole = client.get(address)
    size = len(whole.content)
    assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
    assert int(whole.headers["content-length"]) == size
    head = client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == size
    assert head.headers["x-seed"] == whole.headers["x-seed"]

    for first, last in ((0, 0), (0, size - 1), (1, 900), (size // 3, size // 2), (size - 9, None)):
        header = f"bytes={first}-{'' if last is None else last}"
        part = client.get(address, headers={"Range": header})
        stop = size if last is None else last + 1
        assert part.status_code == 206
        assert part.content == whole.content[first:stop]
        assert part.headers["content-range"] == f"bytes {first}-{stop - 1}/{size}"
    assert client.get(address, headers={"Range": "bytes=-7"}).content == whole.content[-7:]
    beyond = client.get(address, headers={"Range": f"bytes={size}-"})
    assert problem(beyond) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{size}"


def test_the_length_of_a_video_is_in_its_head(client: httpx.Client) -> None:
    response = animate(client, audio=sound(2.04))
    name, size = b"mehd", 4 + 4 + 8  # version and flags, then milliseconds
    at = response.content.index(name)
    assert int.from_bytes(response.content[at + 8 : at + size], "big") == 2040


@given(st.integers(1, 99), st.integers(0, 120), st.integers(0, 120))
def test_a_range_lies_within_the_video(size: int, first: int, last: int) -> None:
    whole = range(size)
    for header, expected in (
        (f"bytes={first}-{last}", whole[first : last + 1]),
        (f"bytes={first}-", whole[first:]),
        (f"bytes=-{last}", whole[-last:] if last else range(0)),
    ):
        if header.startswith("bytes=-") or not header.endswith(f"-{last}") or first <= last:
            if expected:
                assert byte_range(header, size) == expected
            else:
                with pytest.raises(ServiceError, match="expected bytes=0-"):
                    byte_range(header, size)
        else:
            assert byte_range(header, size) is None


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4"]
)
def test_other_ranges_are_ignored(header: str) -> None:
    assert byte_range(header, 10) is None


def test_a_failed_asynchronous_job_has_an_error(client: httpx.Client) -> None:
    response = animate(client, portrait=picture(NO_FACE), headers={"Prefer": "respond-async"})
    address = response.headers["location"]
    assert problem(client.get(f"{address}/video")) == (422, "no_face")
    job = client.get(address).json()
    assert (job["status"], job["error"]["code"]) == ("failed", "no_face")


def test_a_job_can_be_cancelled(client: httpx.Client) -> None:
    response = animate(client, audio=sound(60.0), size="1024", headers={"Prefer": "respond-async"})
    address = response.headers["location"]
    assert client.delete(address).status_code == 204
    assert client.get(address).json()["status"] == "cancelled"
    assert problem(client.get(f"{address}/video")) == (404, "not_found")


@pytest.fixture(scope="module")
def narrow() -> Iterator[httpx.Client]:
    """A service that runs one job, queues another and keeps two avatars."""
    few = {"FADA_MAX_JOBS": "2", "FADA_SESSIONS_PER_WORKER": "1", "FADA_MAX_AVATARS": "2"}
    with running({**FAKE, **few}) as service, service.client() as client:
        yield client


def later(client: httpx.Client) -> str:
    """Start a long asynchronous job; return its URL."""
    asked = animate(client, audio=sound(60.0), size="1024", headers={"Prefer": "respond-async"})
    assert asked.status_code == 202
    return asked.headers["location"]


def until_running(client: httpx.Client, address: str) -> None:
    deadline = time.monotonic() + 20
    while client.get(address).json()["status"] == "queued":
        assert time.monotonic() < deadline


def test_a_video_can_be_followed_while_it_is_made(narrow: httpx.Client) -> None:
    address = later(narrow)
    with narrow.stream("GET", f"{address}/video") as following:
        assert following.status_code == 200
        pieces = following.iter_bytes()
        seen = b""
        while seen.count(b"moof") < 2:
            seen += next(pieces)
        job = narrow.get(address).json()
        assert job["status"] == "running" and 0 < job["progress"] < 0.9
        assert narrow.delete(address).status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):  # cut off, so that a client notices
            for _ in pieces:
                pass
    assert narrow.get(address).json()["status"] == "cancelled"


def test_a_cancelled_job_frees_its_place_at_once(narrow: httpx.Client) -> None:
    first, second = later(narrow), later(narrow)
    until_running(narrow, first)
    assert narrow.get(second).json()["status"] == "queued"
    full = animate(narrow)
    assert problem(full) == (429, "busy")
    assert int(full.headers["retry-after"]) >= 1
    assert narrow.delete(second).status_code == 204  # one that waits
    third = later(narrow)
    assert problem(animate(narrow)) == (429, "busy")
    assert narrow.delete(first).status_code == 204  # one that runs
    fourth = later(narrow)
    until_running(narrow, third)
    for address in (third, fourth):
        narrow.delete(address)
        assert narrow.get(address).json()["status"] == "cancelled"
    assert narrow.delete(first).status_code == 204  # again: nothing changes
    assert animate(narrow).status_code == 200


def test_the_least_recently_used_avatar_is_evicted(narrow: httpx.Client) -> None:
    def make() -> str:
        made = narrow.post("/avatars", files={"portrait": ("p.png", picture())})
        return str(made.json()["avatar_id"])

    old, unused = make(), make()
    form = {"avatar_id": old, "size": "128"}
    used = narrow.post("/animate", files={"audio": ("a.flac", sound(0.2))}, data=form)
    assert used.status_code == 200
    new = make()
    answers = [narrow.get(f"/avatars/{avatar}").status_code for avatar in (old, unused, new)]
    assert answers == [200, 404, 200]


def test_a_streamed_job_is_listed_but_its_video_is_not_kept(client: httpx.Client) -> None:
    job_id = animate(client).headers["x-job-id"]
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["frames"]) == ("done", 10)
    assert problem(client.get(f"/jobs/{job_id}/video")) == (404, "not_found")
