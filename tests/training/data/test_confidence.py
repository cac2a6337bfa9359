"""A sample's confidence: what it depends on, and how it is written."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from training.data.confidence import (
    INFERRED,
    TRACKED,
    SampleConfidence,
    recorded_confidence,
    synthetic_confidence,
    write_confidences,
)


@given(a=st.floats(0, 500), b=st.floats(0, 500))
def test_confidence_falls_with_the_distance_of_borders(a: float, b: float) -> None:
    near, far = sorted((a, b))
    assert 0 <= synthetic_confidence(far) <= synthetic_confidence(near) <= INFERRED < TRACKED


@given(a=st.floats(-90, 0), b=st.floats(-90, 0))
def test_confidence_falls_with_the_level_of_silences(a: float, b: float) -> None:
    quiet, loud = sorted((a, b))
    assert 0 <= recorded_confidence(loud) <= recorded_confidence(quiet) <= INFERRED


def test_unknown_measures_give_a_middling_confidence() -> None:
    assert 0.3 < synthetic_confidence(None) < synthetic_confidence(5.0)
    assert recorded_confidence(-math.inf) == INFERRED


def test_confidences_are_written_one_row_per_sample(tmp_path: Path) -> None:
    path = tmp_path / "run" / "confidence.csv"
    write_confidences(path, [SampleConfidence("a,b.flac", "recorded", 2.0, 0.51234)])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert rows == [
        {"name": "a,b.flac", "source": "recorded", "seconds": "2.00", "confidence": "0.512"}
    ]
