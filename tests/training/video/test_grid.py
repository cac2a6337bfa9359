"""GRID's squares: decoded once, with the points of the whole picture moved into them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.video.grid import grid_clips, open_clips


def test_squares_are_decoded_once_with_mouth_positions(grid_folder: Path) -> None:
    cache = grid_folder / "cache"
    clips = grid_clips(grid_folder, cache, 64)
    unused = grid_folder / "unused"
    for data, other in ((grid_folder, cache), (cache, unused)):
        assert open_clips(data, other, 64).folder == cache
    assert [(c.name, c.frames, c.text) for c in clips.clips] == [
        ("a", 12, "bin blue"),
        ("b", 10, "lay red"),
    ]
    assert clips.frames.shape == (22, 64, 64, 3)
    assert clips.clips[0].scores["seen"] == 1.0 > clips.clips[1].scores["seen"]
    expected = np.load(grid_folder / "expected.npy")
    np.testing.assert_allclose(clips.marks[2], expected, atol=0.02)
    (grid_folder / "face96.mp4").rename(grid_folder / "elsewhere.mp4")
    again = grid_clips(grid_folder, cache, 64)
    np.testing.assert_array_equal(again.frames, clips.frames)
    with pytest.raises(ValueError, match="squares of 64 pixels, expected 96"):
        grid_clips(grid_folder, cache, 96)


def test_inconsistent_files_are_rejected(grid_folder: Path) -> None:
    (grid_folder / "face96_index.json").write_text(json.dumps([["a", 0, 22]]))
    with pytest.raises(ValueError, match="list other clips"):
        grid_clips(grid_folder, grid_folder / "cache", 64)
