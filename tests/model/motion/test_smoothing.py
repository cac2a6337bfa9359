"""Heads glide and lips do not quiver: jitter goes, real movement stays, borders do not show."""

from __future__ import annotations

import numpy as np
import pytest

from model.audio.log_mel import HOP, PREFIX
from model.motion.smoothing import smooth
from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH
from model.types import Floats


def in_windows(motion: Floats) -> Floats:
    """(T, 58) smoothed window by window, each after what came out before it."""
    done = np.zeros((PREFIX, MOTION_DIM), np.float32)
    for start in range(0, len(motion), HOP):
        window = motion[start : start + HOP]
        done = np.concatenate([done, smooth(done[-PREFIX:], window)])
    return np.asarray(done[PREFIX:])


def jerk(motion: Floats) -> float:
    return float(np.abs(np.diff(motion[:, ACTION_COUNT:], 3, axis=0)).mean())


def test_eyes_are_left_alone_and_a_batch_is_its_rows() -> None:
    random = np.random.default_rng(0)
    prefix = random.standard_normal((4, PREFIX, MOTION_DIM)).astype(np.float32)
    latents = random.standard_normal((4, HOP, MOTION_DIM)).astype(np.float32)
    out = smooth(prefix, latents)
    eyes = np.flatnonzero(~MOUTH)
    np.testing.assert_array_equal(out[..., eyes], latents[..., eyes])
    for row in range(4):
        np.testing.assert_allclose(out[row], smooth(prefix[row], latents[row]), atol=1e-5)


def test_a_turn_of_the_head_goes_through_and_jitter_does_not() -> None:
    random = np.random.default_rng(1)
    t = np.arange(50 * HOP) / 25
    turn = 0.05 * np.sin(2 * np.pi * 0.7 * t)[:, None] * np.ones(MOTION_DIM)
    turn[:PREFIX] *= np.linspace(0, 1, PREFIX)[:, None] ** 2
    clean = turn.astype(np.float32)
    noisy = clean + 0.003 * random.standard_normal(clean.shape).astype(np.float32)
    out = in_windows(noisy)
    assert jerk(out) < 0.15 * jerk(noisy)
    error = (out - clean)[:, ACTION_COUNT:]
    assert np.sqrt((error**2).mean()) < 0.003  # nearer to the truth than what went in
    moved = in_windows(clean)[4 * HOP :, ACTION_COUNT:]
    assert np.abs(moved - clean[4 * HOP :, ACTION_COUNT:]).max() < 0.004


def test_lips_that_meet_for_three_frames_still_do_and_do_not_quiver() -> None:
    lips = np.flatnonzero(MOUTH)
    spoken = np.full((20 * HOP, MOTION_DIM), 0.3, np.float32)
    for start in range(10, len(spoken) - 3, 11):  # anywhere in a window, over its borders too
        spoken[start : start + 3] = 0.0
    out = in_windows(spoken)[:, lips]
    shut = spoken[:, lips] == 0
    assert out[shut].reshape(-1, 3, len(lips)).min(1).max() < 0.01
    random = np.random.default_rng(3)
    noise = 0.02 * random.standard_normal(spoken.shape).astype(np.float32)
    left = (in_windows(spoken + noise)[:, lips] - out)[PREFIX:]
    third = [np.abs(np.diff(x, 3, axis=0)).mean() for x in (left, noise[:, lips])]
    assert third[0] < 0.75 * third[1]


@pytest.mark.parametrize("value", [0.0, 0.05])
def test_what_stands_still_stays_where_it_is(value: float) -> None:
    still = np.full((400, MOTION_DIM), value, np.float32)
    out = in_windows(still)
    np.testing.assert_allclose(out[200:], still[200:], atol=1e-3)


def test_where_one_window_ends_and_the_next_begins_does_not_show() -> None:
    """Each window is off by an offset and a drift of its own, as samples are."""
    random = np.random.default_rng(2)
    shape = 2, 200, 1, MOTION_DIM
    offset, drift = 0.003 * random.standard_normal(shape).astype(np.float32)
    windows = offset + drift * np.linspace(-1, 1, HOP, dtype=np.float32)[:, None]
    out = in_windows(windows.reshape(-1, MOTION_DIM))[:, ACTION_COUNT:]
    rough = np.abs(np.diff(out, 3, axis=0)).mean(1)
    across = np.arange(3, len(out)) % HOP < 3  # the last of the four frames is in the next window
    assert rough[across].mean() < 1.4 * rough[~across].mean()
