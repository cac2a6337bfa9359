"""The comparison table: its distances, its baselines and its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.portrait.blendshapes import MOTION_DIM
from training.data.corpus import fit_lip_gap, grid_corpus, held_out, load_grid
from training.data.phones import Phone
from training.evaluation.evaluate import HeldOut
from training.evaluation.metrics import (
    JAW,
    MotionFeatures,
    Utterance,
    diversity,
    frechet_distance,
)
from training.evaluation.report import interval, markdown, ridge_baseline, write_report


def test_frechet_distance_matches_gaussians() -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal((4000, 6))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # shifted by 2 along one axis, and twice as wide along another: 4 + (2 - 1)²
    b = random.standard_normal((4000, 6)) * [1, 2, 1, 1, 1, 1] + [2, 0, 0, 0, 0, 0]
    assert frechet_distance(a, b) == pytest.approx(5, rel=0.1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_damped_motion_is_farther_from_real_motion_than_other_real_motion() -> None:
    random = np.random.default_rng(0)
    shapes = random.standard_normal((6, MOTION_DIM))
    phase = np.arange(1000)[:, None] / (3 + np.arange(6))
    real = [(np.sin(phase + 6 * random.random(6)) @ shapes).astype(np.float32) for _ in range(8)]
    features = MotionFeatures(real[:4])
    truth = features(real[:4])
    other = frechet_distance(features(real[4:]), truth)
    assert frechet_distance(features([r / np.float32(2) for r in real[4:]]), truth) > 3 * other


def test_diversity_is_zero_for_equal_motion_and_one_at_the_speakers_spread() -> None:
    random = np.random.default_rng(0)
    motions = [[random.standard_normal((50, MOTION_DIM)).astype(np.float32)] for _ in range(50)]
    std = np.ones(MOTION_DIM, np.float32)
    assert diversity([motions[0]] * 5, std) == pytest.approx(0, abs=1e-6)
    assert diversity(motions, std) == pytest.approx(1, abs=0.05)


def test_intervals_and_empty_cells_are_written() -> None:
    assert interval([0.5]) == "0.500"
    assert interval([1.0, 1.0, 1.0]) == "1.000 ± 0.000"
    text = markdown(
        {"real": {"jaw r": [1.0]}, "fast": {"jaw r": [0.8], "NFE": [6.0]}}, 2, 1, seeds=3
    )
    assert "| real | 1.000 |" in text and "| fast | 0.800 |" in text and "6.00" in text
    assert "Unseen voices" in text and "| real |  |" not in text


def test_ridge_follows_the_sound(grid_folder: Path) -> None:
    grid = load_grid(grid_folder)
    kept = held_out(len(grid.texts))
    training, tests = grid_corpus(grid, ~kept), grid_corpus(grid, kept)
    utterances = [
        Utterance(grid.samples[c], [], tests.reference[0].numpy()) for c in np.flatnonzero(kept)
    ]
    made = ridge_baseline(training)(utterances, 0)
    truth = tests.motion.numpy().reshape(len(utterances), -1, MOTION_DIM)
    assert [m.shape for m in made] == [t.shape for t in truth]
    jaws = np.concatenate([m[:, JAW] for m in made])
    assert np.corrcoef(jaws, truth[:, :, JAW].reshape(-1))[0, 1] > 0.9


def test_a_row_must_name_its_weights(grid_folder: Path, tmp_path: Path) -> None:
    grid = load_grid(grid_folder)
    corpus = grid_corpus(grid, ~held_out(len(grid.texts)))
    phones = [Phone("SIL", 0.0, 3.0)]
    utterances = [Utterance(grid.samples[0], phones, corpus.reference[0].numpy())]
    tests = HeldOut(
        utterances, [corpus.motion[:75].numpy()], utterances, corpus, fit_lip_gap(corpus)
    )
    with pytest.raises(ValueError, match="NAME=WEIGHTS"):
        write_report(tests, ["teacher"], 1, path=tmp_path / "table.md")
