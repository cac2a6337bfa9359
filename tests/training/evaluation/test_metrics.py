"""Metrics of motions whose faults are known."""

from __future__ import annotations

import numpy as np
import pytest

from model.portrait.blendshapes import ACTIONS, MOTION_DIM
from model.types import FPS, SAMPLE_RATE
from training.data.inferred import ClosedMouths, phone_features, with_closures
from training.data.phones import (
    OPENNESS,
    VISEMES,
    Aligner,
    Phone,
    frames_of,
    openness,
    visemes,
)
from training.evaluation.metrics import (
    Utterance,
    best_lag,
    blinks_per_minute,
    border_jerk,
    closed_share,
    from_first_phone,
    open_share,
    silence_share,
)

WORD = [
    Phone("SIL", 0.0, 0.8),
    Phone("M", 0.8, 0.92),
    Phone("AA", 0.92, 1.2),
    Phone("P", 1.2, 1.28),
    Phone("SIL", 1.28, 2.0),
]


def test_phones_fall_on_their_frames() -> None:
    assert list(frames_of(WORD[1], 50)) == [20, 21, 22]
    wanted = openness(WORD, 50)
    assert wanted[10] == 0 and wanted[25] == pytest.approx(1.0) and wanted[45] == 0
    shares = visemes(WORD, 50)
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-5)
    assert sorted(p for group in VISEMES for p in group) == sorted(OPENNESS)


def test_frames_before_the_first_word_can_be_excluded() -> None:
    empty = np.zeros(0, np.float32)
    at_once = [Phone("B", 0.0, 0.1), Phone("SIL", 0.1, 0.5)]
    both = [Utterance(empty, phones, empty) for phones in (WORD, at_once)]
    kept = from_first_phone(both, [50, 10])
    assert np.flatnonzero(~kept).tolist() == list(range(20))  # 0.8 s, none of the second speech


def test_accurate_mouths_score_one_and_constant_ones_zero() -> None:
    good = 0.1 * openness(WORD, 50)
    lazy = np.full(50, 0.1, np.float32)
    for share in (closed_share, silence_share):
        assert share([good], [WORD]) == 1.0 and share([lazy], [WORD]) == 0.0
    assert open_share([good], [WORD]) == 1.0
    assert open_share([np.zeros(50, np.float32)], [WORD]) == 0.0


def test_a_silence_too_short_to_settle_in_does_not_count() -> None:
    hurried = [Phone("SIL", 0.0, 0.1), Phone("AA", 0.1, 1.0), Phone("SIL", 1.0, 2.0)]
    gap = np.where(np.arange(50) < 25, 0.1, 0.0).astype(np.float32)
    assert silence_share([gap], [hurried]) == 1.0


@pytest.mark.parametrize("late", [-2, 0, 3])
def test_lag_is_recovered(late: int) -> None:
    truth = np.random.default_rng(0).random(400).astype(np.float32)
    assert best_lag([np.roll(truth, late)], [truth])[0] == late


def test_blinks_are_counted_once_each() -> None:
    motion = np.zeros((60 * FPS, MOTION_DIM), np.float32)
    for start in range(50, 1450, 100):
        motion[start : start + 6, ACTIONS.index("eyeBlinkLeft")] = [0.3, 0.7, 1, 0.6, 0.5, 0.2]
    assert blinks_per_minute([motion]) == 14


def test_jumps_at_window_borders_raise_border_jerk() -> None:
    random = np.random.default_rng(0)
    smooth = random.normal(0, 0.01, (400, MOTION_DIM)).astype(np.float32)
    assert border_jerk([smooth], [0]) == pytest.approx(1.0, abs=0.15)
    jumping = smooth + (np.arange(400) // 8 % 2)[:, None].astype(np.float32)
    assert border_jerk([jumping], [0]) > 3


def test_inferred_mouths_close_on_bilabials_and_rest_in_silence() -> None:
    import torch

    closed = ClosedMouths(torch.full((52,), 0.3), torch.full((52,), 0.1))
    made = with_closures(torch.ones(50, 52), WORD, closed)
    assert made[21, 0] == pytest.approx(0.3) and made[8, 0] == pytest.approx(0.1)
    assert made[26, 0] == pytest.approx(1.0)
    samples = np.zeros(2 * SAMPLE_RATE, np.float32)
    assert phone_features(samples, WORD).shape == (50, 13 * (len(VISEMES) + 1))


def test_words_that_are_unknown_or_missing_are_not_aligned() -> None:
    align = Aligner()
    silence = np.zeros(SAMPLE_RATE, np.float32)
    assert align(silence, "") is None
    assert align(silence, "xqzzt") is None
    assert align(silence, "press 1") is None
