"""Interruption, from the user's first word to what a viewer sees and hears of the old speech."""

from __future__ import annotations

import pytest
from barge_in import measure
from conftest import Service
from helpers import run


def test_an_interrupted_avatar_is_silent_and_still_within_300_ms(service: Service) -> None:
    measured = []
    for _ in range(4):  # a machine that is busy for a moment says nothing
        measured.append(run(measure(service)))
        if max(measured[-1].picture_s, measured[-1].sound_s) < 0.3:
            return
    pytest.fail(f"{measured}")
