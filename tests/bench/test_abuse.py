from __future__ import annotations

import re

from bench.abuse import floods_of
from bench.doors import DOORS
from tests.conftest import EXAMPLES

SECURITY = EXAMPLES.parent / "guide" / "security.md"


def test_measured_abuse_is_what_the_benchmark_does() -> None:
    rows = re.findall(
        r"^\| ([a-z][^|(]*?) (?:\(.*\) )?\| [\d, ]+ \| [+-]", SECURITY.read_text(), re.M
    )
    assert len(rows) > 8 and set(rows) - {"none"} <= set(floods_of(DOORS))


def test_every_door_is_abused_in_its_own_ways_too() -> None:
    floods = set(floods_of({"stream": DOORS["stream"]}))
    assert "stream: unfinished requests" in floods and "stream: large updates" in floods
    assert not any(name.startswith("animate") for name in floods)
