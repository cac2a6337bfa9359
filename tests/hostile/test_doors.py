"""What every way into the service must bear from any client."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from bench.doors import DOORS, Address, Door
from tests.server.media_files import sound

NAMES = os.environ.get("FADA_TEST_DOORS", ",".join(DOORS)).split(",")
BAD = (b"", b"these are words")
REASONS = {"bad_request", "empty_audio", "no_face", "too_large", "unsupported_media"}

pytestmark = pytest.mark.parametrize("door", [DOORS[name] for name in NAMES], ids=NAMES)


def good(door: Door) -> dict[str, bytes]:
    """The door's own examples, with a short sound."""
    return {**door.media, **({"audio": sound(0.2)} if "audio" in door.media else {})}


def test_a_good_request_is_served(door: Door, at: Address) -> None:
    answer = door.ask(at, good(door))
    assert answer.code == "ok", answer.detail


def test_bad_files_are_refused_with_a_reason(door: Door, at: Address) -> None:
    for name in door.media:
        for blob in BAD:
            answer = door.ask(at, {**good(door), name: blob})
            assert answer.code in REASONS and answer.detail, (name, blob, answer)


def test_pages_of_other_origins_are_refused(door: Door, at: Address) -> None:
    foreign = Address(at.url, {**at.headers, "Origin": "https://evil.example"})
    assert door.ask(foreign, good(door)).code == "forbidden"


def test_requests_that_are_never_finished_or_read_disturb_nobody(door: Door, at: Address) -> None:
    whole = door.whole(at)
    with ExitStack() as stack:
        for begin in (door.half(at), whole[: len(whole) // 2], whole[: len(whole) - 1]) * 5:
            stack.enter_context(at.dial(begin))
        for _ in range(2):
            stack.enter_context(at.dial(whole))  # its answer is not read
        assert door.ask(at, good(door)).code == "ok"
    assert door.ask(at, good(door)).code == "ok"


def test_noise_on_the_wire_disturbs_nobody(door: Door, at: Address) -> None:
    for noise in (
        b"\0" * 1000,
        b"\x16\x03\x01" + os.urandom(500),
        door.half(at) + os.urandom(5000),
    ):
        with at.dial(noise):
            pass
    assert door.ask(at, good(door)).code == "ok"
