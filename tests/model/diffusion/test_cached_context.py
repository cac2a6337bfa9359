"""What is told twice is looked at once."""

from __future__ import annotations

import torch
from torch import Tensor

from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions, X0Denoiser
from model.diffusion.guidance import MultiCFGDenoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import CosineSchedule


class Counting:
    def __init__(self) -> None:
        self.looked = 0

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        self.looked += 1
        return (cond["audio"] * cond["has_audio"][:, None],)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return 0.5 * x_t + context[0]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def test_a_window_is_told_once_and_the_next_one_anew() -> None:
    net, grid, schedule = Counting(), uniform_timesteps(5), CosineSchedule()
    once = MultiCFGDenoiser(X0Denoiser(CachedContext(net)))
    plain = MultiCFGDenoiser(X0Denoiser(Counting()))
    noise = torch.randn(2, 3)
    for k in range(2):
        cond = {"audio": torch.full((2, 3), float(k)), "guidance": torch.full((2, 2), 2.0)}
        made = sample(once, noise, grid, cond, schedule)
        torch.testing.assert_close(made, sample(plain, noise, grid, cond, schedule))
        assert net.looked == k + 1
