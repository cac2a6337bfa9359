"""The schedule of Stable Diffusion's teachers, and walks along it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.diffusion.denoiser import Conditions
from model.diffusion.discrete_schedule import LinearBetaSchedule, trailing_steps
from model.diffusion.sampler import sample, sample_steps, uniform_timesteps

SCHEDULE = LinearBetaSchedule(1000, first=0.00085, last=0.012, zero_terminal_snr=True)
PLAIN = LinearBetaSchedule(1000, first=0.00085, last=0.012, zero_terminal_snr=False)


def nothing(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    return 0.5 * x_t


def test_it_begins_clean_and_ends_in_pure_noise_exactly() -> None:
    alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor([0.0, 1.0]))
    assert (alpha.tolist(), sigma.tolist()) == ([1.0, 0.0], [0.0, 1.0])
    assert float(PLAIN.alpha_sigma(torch.tensor([1.0]))[0][0]) > 0.01


def test_its_first_step_has_the_first_beta_in_either_form() -> None:
    for schedule in (SCHEDULE, PLAIN):
        alpha, _ = schedule.alpha_sigma(torch.tensor([0.001], dtype=torch.float64))
        assert float(alpha[0] ** 2) == pytest.approx(1 - 0.00085, abs=1e-9)


@given(st.floats(0, 1), st.floats(0, 1))
def test_signal_falls_and_variance_stays(a: float, b: float) -> None:
    t = torch.tensor(sorted((a, b)), dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    assert float(alpha[0]) >= float(alpha[1])
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, dtype=torch.float64))


def test_trailing_steps_are_the_uniform_grid_where_it_divides() -> None:
    for n in (1, 2, 5, 25, 50):
        grid = uniform_timesteps(n)
        steps = np.stack([grid[:-1], grid[1:]], 1)
        np.testing.assert_allclose(trailing_steps(n, 1000), steps, rtol=1e-6, atol=1e-7)


def test_trailing_steps_end_a_whole_number_of_trained_times_earlier() -> None:
    begins, ends = (1000 * trailing_steps(7, 1000).double()).round().long().unbind(1)
    assert begins.tolist() == [1000, 857, 714, 571, 429, 286, 143]
    assert (begins - ends).tolist() == [142] * 7


def test_a_chain_of_steps_is_the_plain_walk() -> None:
    noise, grid = torch.randn(2, 3), uniform_timesteps(4)
    steps = np.stack([grid[:-1], grid[1:]], axis=1)
    walked = sample_steps(nothing, noise, steps, cond={}, schedule=SCHEDULE)
    assert torch.equal(walked, sample(nothing, noise, grid, cond={}, schedule=SCHEDULE))


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="steps = 0, expected 1 to 1000"):
        trailing_steps(0, 1000)
    with pytest.raises(ValueError, match="pairs of falling times"):
        sample_steps(
            nothing, torch.ones(1, 1), torch.tensor([[0.5, 0.5]]), cond={}, schedule=SCHEDULE
        )
    with pytest.raises(ValueError, match="betas = 0.5 to 0.1"):
        LinearBetaSchedule(10, first=0.5, last=0.1, zero_terminal_snr=True)
