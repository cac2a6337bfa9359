"""Figures of drawn mouths: what they say of pictures whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench.mouths.blind import score
from bench.mouths.drawing import MOUTH_RING, Drawn
from bench.mouths.kernel_distance import inside, kid, most_alike, nearest
from bench.mouths.stillness import slip
from model.rendering import face_model
from training.data.mouths import CORNERS, HEIGHT, WIDTH, align, kept_apart


def test_the_contour_is_the_renderers() -> None:
    assert np.array_equal(MOUTH_RING, face_model.MOUTH_RING)


def test_a_mouth_is_cut_out_with_its_corners_in_place() -> None:
    angle = np.linspace(np.pi, 3 * np.pi, 20, endpoint=False)
    turned = np.stack([np.cos(angle) - 0.2 * np.sin(angle), 0.6 * np.sin(angle)], axis=1)
    crop, ring = align(np.zeros((90, 90, 3), np.uint8), (45 + 20 * turned).astype(np.float32))
    assert crop.shape == (HEIGHT, WIDTH, 3)
    assert ring[[0, 10]] == pytest.approx(CORNERS, abs=1e-3)


def test_a_third_of_the_mouths_is_kept_apart_for_good() -> None:
    names = [f"{i:03d}.jpg" for i in range(333)]
    assert sum(map(kept_apart, names)) == 104
    assert kept_apart("001.jpg") is kept_apart("001.jpg")


def test_the_kernel_distance_sees_another_distribution_and_no_other() -> None:
    rng = np.random.default_rng(0)
    a, b, other = (rng.normal(mean, 1.0, (60, 32)) for mean in (0.0, 0.0, 0.7))
    groups = range(60)
    assert kid(a, b, groups=groups).low < 0.0 < kid(a, b, groups=groups).high
    assert kid(a, other, groups=groups).low > 0.0
    assert nearest(np.concatenate([a, b[:1]]), b)[-1] == pytest.approx(0.0, abs=1e-6)


def test_mouths_are_compared_inside_both_contours() -> None:
    angle = np.linspace(np.pi, 3 * np.pi, 20, endpoint=False)
    wide, high = (
        (128 + a * np.cos(angle), 104 + b * np.sin(angle)) for a, b in ((60, 12), (40, 25))
    )
    rings = np.stack([np.stack(ring, axis=1) for ring in (wide, high)]).astype(np.float32)
    black, white = (np.full((HEIGHT, WIDTH, 3), level, np.uint8) for level in (0, 255))
    changed = [
        (inside(black, *chosen) != inside(white, *chosen)).any(axis=2)
        for chosen in (rings[:1], rings[1:], rings)
    ]
    assert np.array_equal(changed[0] & changed[1], changed[2])
    assert most_alike(rings, np.concatenate([rings[::-1], rings + 5.0])) == [1, 0]


@pytest.mark.parametrize("moved", [0.0, 0.4, 1.2])
def test_teeth_that_slip_are_noticed(moved: float) -> None:
    assert slip(_teeth(0.0), _teeth(moved)) == pytest.approx(moved, abs=0.1)


def _teeth(shift: float) -> Drawn:
    """A grin of 90 × 30 pixels with teeth 9 wide, moved to the right."""
    x = np.arange(160) + 0.5 - shift
    row = 200 - 90 * np.exp(-(((x % 9) - 4.5) ** 2))
    picture = np.repeat(np.tile(row, (120, 1))[..., None], 3, axis=2)
    points = np.zeros((478, 2), np.float32)
    angle = np.linspace(np.pi, 3 * np.pi, 20, endpoint=False)
    points[MOUTH_RING] = np.stack([80 + 45 * np.cos(angle), 60 + 15 * np.sin(angle)], axis=1)
    points[[33, 263]] = (5.0, 20.0), (155.0, 20.0)
    return Drawn(cv2.GaussianBlur(picture, (0, 0), 0.7).astype(np.uint8), points, 0.0, 0.0)


def test_a_blind_choice_is_counted_by_the_key(tmp_path: Path) -> None:
    key = {"still-00": "A", "still-01": "B", "clip-00": "B"}
    (tmp_path / "key.json").write_text(json.dumps(key))
    answers = tmp_path / "answers"
    answers.write_text("still-00 A\nstill-01 A\nclip-00 B\n")
    stills, clips = score(tmp_path, answers)
    assert "1 of 2" in stills and "1 of 1" in clips
    answers.write_text("still-07 A\n")
    with pytest.raises(ValueError, match="still-07"):
        list(score(tmp_path, answers))
