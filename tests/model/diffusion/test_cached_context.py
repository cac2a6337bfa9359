"""The context is computed once per conditions, and the prediction stays the network's."""

from __future__ import annotations

import torch
from torch import Tensor

from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions, X0Denoiser
from model.diffusion.guidance import MultiCFGDenoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import CosineSchedule
from model.motion.network import MotionNet, NetConfig


class Counting:
    def __init__(self) -> None:
        self.contexts = 0

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        self.contexts += 1
        return (cond["audio"] * cond["has_audio"][:, None],)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return 0.5 * x_t + context[0]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        return self.denoise(x_t, t, self.context(cond))


def test_a_window_has_one_context_and_the_next_one_another() -> None:
    net, grid, schedule = Counting(), uniform_timesteps(5), CosineSchedule()
    cached = MultiCFGDenoiser(X0Denoiser(CachedContext(net)))
    plain = MultiCFGDenoiser(X0Denoiser(Counting()))
    noise = torch.randn(2, 3)
    for k in range(2):
        cond = {"audio": torch.full((2, 3), float(k)), "guidance": torch.full((2, 2), 2.0)}
        made = sample(cached, noise, grid, cond=cond, schedule=schedule)
        torch.testing.assert_close(made, sample(plain, noise, grid, cond=cond, schedule=schedule))
        assert net.contexts == k + 1


def test_it_gives_what_the_network_gives_without_gradients() -> None:
    torch.manual_seed(0)
    net = MotionNet(NetConfig()).eval()
    forward = CachedContext(net)
    for batch in (1, 3, 3):
        x, t = torch.randn(batch, 8, 58), torch.rand(batch)
        cond = {
            "prefix": torch.randn(batch, 12, 58),
            "audio": torch.randn(batch, 24, 256),
            "reference": torch.randn(batch, 64),
            "has_audio": torch.ones(batch),
            "has_reference": torch.ones(batch),
        }
        made = forward(x, t, cond)
        torch.testing.assert_close(made, net(x, t, cond))
        assert not made.requires_grad
