"""Shared by all tests: where example and optional test data lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="session")
def examples() -> Path:
    """The portraits and the speech that ship with the project."""
    return EXAMPLES


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The optional collection of portraits and voices, `FADA_TEST_DATA`; skips without it."""
    place = os.environ.get("FADA_TEST_DATA")
    if not place:
        pytest.skip("FADA_TEST_DATA is not set")
    return Path(place)
