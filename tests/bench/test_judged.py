"""What judges chose, counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.judged import score


@pytest.fixture
def out(tmp_path: Path) -> Path:
    key = {"pair-00-0": "A", "pair-00-1": "B", "pair-01-0": "B", "clip-0": "sad", "clip-1": "sad"}
    (tmp_path / "key.json").write_text(json.dumps(key))
    return tmp_path


def test_choices_are_counted_by_pair_and_by_portrait(out: Path) -> None:
    (out / "answers").write_text("pair-00-0 A\npair-00-1 B surely\npair-01-0 A\n")
    pairs, portraits = score(out, out / "answers")
    assert pairs == "new chosen in 2 of 3 pairs (by chance p = 0.5)"
    assert portraits == "new chosen more often for 1 of 2 portraits"


def test_emotions_are_counted_by_class(out: Path) -> None:
    (out / "answers").write_text("clip-0 sad\nclip-1 neutral\n")
    assert "sad: 1 of 2 recognised (sad 1, neutral 1)" in score(out, out / "answers")


def test_an_answer_to_what_was_not_shown_is_refused(out: Path) -> None:
    (out / "answers").write_text("clip-9 sad\n")
    with pytest.raises(ValueError, match="clip-9"):
        next(score(out, out / "answers"))
