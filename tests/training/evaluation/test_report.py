"""The comparison table: its distances, its baselines and its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.portrait.blendshapes import MOTION_DIM
from training.data.corpus import grid_corpus, held_out, load_grid
from training.evaluation.baselines import ridge_baseline, token_readout
from training.evaluation.evaluate import PARTS, in_part
from training.evaluation.metrics import (
    JAW,
    MotionFeatures,
    Utterance,
    diversity,
    frechet_distance,
)
from training.evaluation.report import RowSpec, interval, markdown, parse_row


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


def test_intervals_are_over_clips_and_a_star_marks_a_difference() -> None:
    assert interval([0.5]) == "0.500"
    drawn = np.linspace(0.4, 0.6, 201)
    assert interval([0.5, 0.5], drawn) == "0.500 (0.405–0.595)"
    # All resamples differ alike, so the rows differ, though their intervals overlap.
    assert interval([0.5], drawn, drawn + 0.05) == "0.500 (0.405–0.595) *"
    assert interval([0.5], drawn, drawn[::-1]) == "0.500 (0.405–0.595)"


def test_rows_have_their_cells_and_no_others() -> None:
    values = {"real": {"jaw r": [1.0]}, "fast": {"jaw r": [0.8], "NFE": [6.0]}}
    text = markdown(values, {"fast": {"jaw r": [0.7, 0.9]}}, "2 clips", seeds=3, against="fast")
    assert "| real | 1.000 |" in text and "| fast | 0.800 (0.705–0.895) |" in text
    assert "6.00" in text and "Unseen voices" in text and "| real |  |" not in text


def test_rows_are_parsed() -> None:
    assert parse_row("fast, 2 NFE=a/b.safetensors") == RowSpec(
        "fast, 2 NFE", Path("a/b.safetensors")
    )
    assert parse_row("t=w.safetensors:25@1.2,1") == RowSpec(
        "t", Path("w.safetensors"), 25, (1.2, 1.0)
    )
    for text in ("teacher", "=w", "t=w:0", "t=w:x", "t=w@1"):
        with pytest.raises(ValueError, match="NAME=WEIGHTS"):
            parse_row(text)


def test_parts_share_no_recording() -> None:
    names = [f"grid {n}" for n in range(500)]
    parts = {part: {name for name in names if in_part(name, part)} for part in PARTS}
    assert set.union(*parts.values()) == set(names)
    assert sum(map(len, parts.values())) == len(names)
    assert len(parts["choose"]) > 150 and len(parts["report"]) > 150 and len(parts["apart"]) > 70


@pytest.mark.parametrize("kind", ["log-mels", "tokens"])
def test_linear_baselines_follow_the_sound(grid_folder: Path, kind: str) -> None:
    grid = load_grid(grid_folder)
    kept = held_out(len(grid.texts))
    training, tests = grid_corpus(grid, ~kept), grid_corpus(grid, kept)
    utterances = [
        Utterance(grid.samples[c], [], tests.reference[0].numpy()) for c in np.flatnonzero(kept)
    ]
    make = (
        ridge_baseline(training)
        if kind == "log-mels"
        else token_readout(training, torch.nn.Identity())
    )
    made = make(utterances, 0)
    truth = tests.motion.numpy().reshape(len(utterances), -1, MOTION_DIM)
    assert [m.shape for m in made] == [t.shape for t in truth]
    jaws = np.concatenate([m[:, JAW] for m in made])
    assert np.corrcoef(jaws, truth[:, :, JAW].reshape(-1))[0, 1] > 0.9
