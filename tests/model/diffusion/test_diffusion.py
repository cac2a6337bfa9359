"""The diffusion core against the one case that is known exactly: Gaussian data.

For x0 ~ N(m, c²) the best denoiser is x0_hat = m + (α c² / (α² c² + σ²)) (x_t - α m), and the flow
from noise to data is affine: x0 = m + c·x_1. So samplers can be held to their order.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.diffusion.denoiser import Conditions, EpsDenoiser, VDenoiser, X0Denoiser
from model.diffusion.guidance import CFGTokenDenoiser, MultiCFGDenoiser
from model.diffusion.sampler import ddim_step, ddim_target, sample, uniform_timesteps
from model.diffusion.schedule import CosineSchedule, add_noise, like
from model.types import Guidance

SCHEDULE = CosineSchedule()
DOUBLE = torch.float64


class Gaussian:
    """The exact denoiser of N(mean, spread²), whatever the shape."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, sigma = (like(a, x_t) for a in SCHEDULE.alpha_sigma(t))
        gain = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)


class Switched:
    """Three different Gaussians' denoisers for the three branches of guidance."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        self.calls.append(len(x_t))
        shift = like(cond["has_reference"] + 10 * cond["has_audio"], x_t)
        return Gaussian(0.3, 0.7)(x_t, t, cond) + shift


def noise(batch: int = 4, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 5, generator=random, dtype=DOUBLE)


@given(t=st.floats(0, 1))
def test_the_schedule_keeps_variance_and_ends_in_pure_noise(t: float) -> None:
    alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor([t, 0.0, 1.0], dtype=DOUBLE))
    assert math.isclose(float(alpha[0] ** 2 + sigma[0] ** 2), 1.0, abs_tol=1e-12)
    assert (float(alpha[1]), float(sigma[1])) == (1.0, 0.0)
    assert (float(alpha[2]), float(sigma[2])) == (0.0, 1.0)


def test_ddim_converges_to_the_exact_flow_at_first_order() -> None:
    start = noise()
    exact = 0.4 + 0.6 * start

    def error(steps: int) -> float:
        made = sample(
            Gaussian(0.4, 0.6), start, uniform_timesteps(steps), cond={}, schedule=SCHEDULE
        )
        return float((made - exact).abs().max())

    errors = [error(n) for n in (50, 100, 200, 400)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 1e-2
    assert all(0.9 < order < 1.1 for order in orders)


def test_one_step_gives_the_mean_as_nothing_else_is_known_at_full_noise() -> None:
    made = sample(Gaussian(0.4, 0.6), noise(), uniform_timesteps(1), cond={}, schedule=SCHEDULE)
    torch.testing.assert_close(made, torch.full_like(made, 0.4))


@pytest.mark.parametrize("at", [0.05, 0.5, 0.95])
def test_parametrisations_agree(at: float) -> None:
    exact = Gaussian(0.4, 0.6)
    x_t, t = noise(), torch.full((4,), at, dtype=DOUBLE)
    alpha, sigma = (like(a, x_t) for a in SCHEDULE.alpha_sigma(t))

    def eps(x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return (x - alpha * exact(x, t, cond)) / sigma

    def v(x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return alpha * eps(x, t, cond) - sigma * exact(x, t, cond)

    wanted = exact(x_t, t, {})
    torch.testing.assert_close(X0Denoiser(exact)(x_t, t, {}), wanted)
    torch.testing.assert_close(VDenoiser(v, SCHEDULE)(x_t, t, {}), wanted)
    torch.testing.assert_close(EpsDenoiser(eps, SCHEDULE)(x_t, t, {}), wanted)


def test_eps_says_so_where_there_is_no_signal() -> None:
    denoiser = EpsDenoiser(lambda x, t, c: x, SCHEDULE)
    with pytest.raises(ValueError, match="alpha"):
        denoiser(noise(), torch.ones(4, dtype=DOUBLE), {})


@settings(max_examples=30)
@given(t=st.floats(0.05, 1), share=st.floats(0, 0.95))
def test_a_step_with_its_target_lands_where_the_target_was_made(t: float, share: float) -> None:
    x_t, x_s = noise(seed=1), noise(seed=2)
    now, then = (torch.full((4,), v, dtype=DOUBLE) for v in (t, t * share))
    x0 = ddim_target(x_t, x_s, t=now, s=then, schedule=SCHEDULE)
    torch.testing.assert_close(ddim_step(x_t, x0, t=now, s=then, schedule=SCHEDULE), x_s)


def test_a_walk_along_the_true_noise_stays_on_its_line() -> None:
    x0, eps = noise(seed=3), noise(seed=4)
    now, then = (torch.full((4,), v, dtype=DOUBLE) for v in (0.8, 0.3))
    x_t = add_noise(SCHEDULE, x0, eps, t=now)
    torch.testing.assert_close(
        ddim_step(x_t, x0, t=now, s=then, schedule=SCHEDULE), add_noise(SCHEDULE, x0, eps, t=then)
    )


def conditions(audio: float, reference: float, batch: int = 4) -> dict[str, Tensor]:
    return {"guidance": torch.tensor([[audio, reference]], dtype=DOUBLE).expand(batch, 2)}


def test_guidance_at_one_is_no_guidance() -> None:
    net = Switched()
    x_t, t = noise(), torch.full((4,), 0.6, dtype=DOUBLE)
    guided = MultiCFGDenoiser(net)(x_t, t, conditions(1.0, 1.0))
    on = torch.ones(4, dtype=DOUBLE)
    plain = net(x_t, t, {"has_audio": on, "has_reference": on})
    torch.testing.assert_close(guided, plain)


@given(audio=st.floats(0, 10), reference=st.floats(0, 10))
@settings(max_examples=30)
def test_guidance_moves_along_each_condition_by_its_own_scale(
    audio: float, reference: float
) -> None:
    x_t, t = noise(), torch.full((4,), 0.6, dtype=DOUBLE)
    guided = MultiCFGDenoiser(Switched())(x_t, t, conditions(audio, reference))
    wanted = Gaussian(0.3, 0.7)(x_t, t, {}) + reference + 10 * audio
    torch.testing.assert_close(guided, wanted)


def test_one_call_makes_the_branches_that_have_weight() -> None:
    net = Switched()
    t = torch.full((4,), 0.6, dtype=DOUBLE)
    scales = torch.tensor([[2.0, 1.0], [2.0, 3.0], [1.0, 1.0], [0.0, 0.0]], dtype=DOUBLE)
    MultiCFGDenoiser(net)(noise(), t, {"guidance": scales})
    assert net.calls == [2 + 3 + 1 + 1]
    assert [Guidance(*row.tolist()).branches for row in scales] == [2, 3, 1, 1]


def test_sampling_in_a_batch_equals_alone() -> None:
    start = noise(batch=5)
    grid = uniform_timesteps(25)
    scales = torch.tensor([[1.0, 1.0], [2, 1], [1, 3], [4, 2], [0, 0]], dtype=DOUBLE)
    guided = MultiCFGDenoiser(Switched())
    batched = sample(guided, start, grid, cond={"guidance": scales}, schedule=SCHEDULE)
    for i in range(5):
        alone = sample(
            guided, start[i : i + 1], grid, cond={"guidance": scales[i : i + 1]}, schedule=SCHEDULE
        )
        torch.testing.assert_close(batched[i : i + 1], alone)


def test_scale_tokens_are_clamped_to_what_was_taught() -> None:
    seen: list[Tensor] = []

    def net(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        seen.append(cond["guidance"])
        assert bool((cond["has_audio"] == 1).all() and (cond["has_reference"] == 1).all())
        return x_t

    student = CFGTokenDenoiser(net, ((1.0, 4.0), (1.0, 3.0)))
    scales = torch.tensor([[0.0, 10.0], [2.0, 2.0]], dtype=DOUBLE)
    student(noise(2), torch.ones(2, dtype=DOUBLE), {"guidance": scales})
    assert seen[0].tolist() == [[1.0, 3.0], [2.0, 2.0]]


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="steps = 0"):
        uniform_timesteps(0)
    with pytest.raises(ValueError, match="falling"):
        sample(Gaussian(0, 1), noise(), torch.tensor([0.5, 1.0]), cond={}, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="guidance has shape"):
        MultiCFGDenoiser(Switched())(
            noise(), torch.ones(4, dtype=DOUBLE), {"guidance": torch.ones(4, 3)}
        )
