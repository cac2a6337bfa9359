"""The latent's meaning: what goes in comes out, and portraits keep their own look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.portrait.blendshapes import (
    ABSOLUTE,
    ACTION_COUNT,
    ACTIONS,
    BLINK,
    MOTION_DIM,
    REFERENCE_DIM,
    ROTATION,
    from_motion,
    reference_features,
    rotation_matrices,
    rotation_vectors,
    to_motion,
)
from model.types import Floats


def drawn(seed: int, frames: int = 5) -> tuple[Floats, Floats, Floats, Floats]:
    random = np.random.default_rng(seed)
    coefficients = random.random((frames, ACTION_COUNT), np.float32)
    rest = 0.9 * random.random(ACTION_COUNT, np.float32)
    pose = random.normal(0, 0.4, (frames, 6)).astype(np.float32)
    return coefficients, pose, rest, random.normal(0, 0.3, 6).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_was_tracked_comes_back(seed: int) -> None:
    coefficients, pose, rest, rest_pose = drawn(seed)
    motion = to_motion(coefficients, pose, rest=rest, rest_pose=rest_pose)
    back, relative = from_motion(motion, rest)
    np.testing.assert_allclose(back, coefficients, atol=1e-5)
    turned = rotation_matrices(relative[:, :3]) @ rotation_matrices(rest_pose[None, :3])
    np.testing.assert_allclose(turned, rotation_matrices(pose[:, :3]), atol=1e-5)
    np.testing.assert_allclose(relative[:, 3:] + rest_pose[3:], pose[:, 3:], atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_rest_is_zero_but_for_the_lips(seed: int) -> None:
    _, _, rest, rest_pose = drawn(seed)
    motion = to_motion(rest[None], rest_pose[None], rest=rest, rest_pose=rest_pose)[0]
    np.testing.assert_allclose(motion[:ACTION_COUNT][~ABSOLUTE], 0, atol=1e-6)
    np.testing.assert_allclose(motion[ACTION_COUNT:], 0, atol=1e-6)
    np.testing.assert_array_equal(motion[:ACTION_COUNT][ABSOLUTE], rest[ABSOLUTE])


def test_a_full_blink_closes_any_eye_and_zero_motion_closes_parted_lips() -> None:
    rest = np.full(ACTION_COUNT, 0.3, np.float32)
    motion = np.zeros((1, MOTION_DIM), np.float32)
    motion[:, :ACTION_COUNT][:, BLINK] = 1.0
    coefficients, _ = from_motion(motion, rest)
    np.testing.assert_allclose(coefficients[0, BLINK], 1.0)
    assert coefficients[0, ACTIONS.index("jawOpen")] == 0.0
    assert coefficients[0, ACTIONS.index("mouthSmileLeft")] == pytest.approx(0.3)


def test_coefficients_never_leave_their_range() -> None:
    random = np.random.default_rng(0)
    motion = random.normal(0, 5, (50, MOTION_DIM)).astype(np.float32)
    coefficients, _ = from_motion(motion, random.random(ACTION_COUNT, np.float32))
    assert coefficients.min() >= 0 and coefficients.max() <= 1


def test_closed_eyes_at_rest_stay_finite() -> None:
    rest = np.ones(ACTION_COUNT, np.float32)
    ones = np.ones((1, ACTION_COUNT), np.float32)
    pose = np.zeros((1, 6), np.float32)
    assert np.isfinite(to_motion(ones, pose, rest=rest, rest_pose=pose[0])).all()


def test_rotation_vectors_turn_by_the_right_hand() -> None:
    quarter = np.array([[0, np.pi / 2, 0]], np.float32)  # about y (up): z goes to x
    turned = rotation_matrices(quarter)[0] @ np.array([0, 0, 1.0])
    np.testing.assert_allclose(turned, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rotation_vectors(rotation_matrices(quarter)), quarter, atol=1e-6)


def test_the_names_are_arkits_and_each_once() -> None:
    assert len(ACTIONS) == len(set(ACTIONS)) == ACTION_COUNT == 52
    for name in ("eyeBlinkLeft", "jawOpen", "mouthClose", "tongueOut"):
        assert name in ACTIONS


def test_reference_features_see_shape_not_size_or_place() -> None:
    random = np.random.default_rng(1)
    rest = random.random(ACTION_COUNT, np.float32)
    landmarks = random.normal(0, 30, (478, 3)).astype(np.float32)
    features = reference_features(rest, landmarks)
    assert features.shape == (REFERENCE_DIM,) and np.abs(features).max() <= 2
    turn = rotation_matrices(np.array([[0.2, 0.5, -0.1]], np.float32))[0].astype(np.float32)
    moved = 3.0 * landmarks @ turn.T + 100.0
    np.testing.assert_allclose(reference_features(rest, moved), features, atol=1e-3)
    assert (reference_features(rest, None)[ACTION_COUNT:] == 0).all()


def test_wrong_shapes_are_refused() -> None:
    coefficients, pose, rest, rest_pose = drawn(0)
    with pytest.raises(ValueError, match="coefficients has shape"):
        to_motion(coefficients[:, :51], pose, rest=rest, rest_pose=rest_pose)
    with pytest.raises(ValueError, match="motion has shape"):
        from_motion(np.zeros((3, 52), np.float32), rest)
    with pytest.raises(ValueError, match="landmarks have shape"):
        reference_features(rest, np.zeros((68, 3), np.float32))
    with pytest.raises(ValueError, match="eye corners"):
        reference_features(rest, np.zeros((478, 3), np.float32))
    assert ROTATION.start == ACTION_COUNT
