"""What a sample's confidence rises and falls with, and where it is kept."""

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
def test_the_further_borders_are_apart_the_less_is_believed(a: float, b: float) -> None:
    near, far = sorted((a, b))
    assert 0 <= synthetic_confidence(far) <= synthetic_confidence(near) <= INFERRED < TRACKED


@given(a=st.floats(-90, 0), b=st.floats(-90, 0))
def test_the_louder_a_silence_the_less_is_believed(a: float, b: float) -> None:
    quiet, loud = sorted((a, b))
    assert 0 <= recorded_confidence(loud) <= recorded_confidence(quiet) <= INFERRED


def test_what_is_not_known_is_neither_best_nor_worthless() -> None:
    assert 0.3 < synthetic_confidence(None) < synthetic_confidence(5.0)
    assert recorded_confidence(-math.inf) == INFERRED


def test_qualities_are_kept_a_line_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "run" / "confidence.csv"
    write_confidences(path, [SampleConfidence("a,b.flac", "recorded", 2.0, 0.51234)])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert rows == [
        {"name": "a,b.flac", "source": "recorded", "seconds": "2.00", "confidence": "0.512"}
    ]
