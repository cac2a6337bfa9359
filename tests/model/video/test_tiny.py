"""video-tiny as the diffusion core sees it: the motion network's conditions, video for latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.audio.log_mel import HOP, PREFIX, ROW_DIM, WINDOW_FRAMES
from model.diffusion.denoiser import X0Denoiser
from model.diffusion.guidance import CFGTokenDenoiser, MultiCFGDenoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import CosineSchedule
from model.video.config import TinyConfig, tiny_config
from model.video.tiny import PatchCodec, TinyNet, tiny_student_of

SMALL = tiny_config(16)


@pytest.fixture
def teacher(shake: Callable[[nn.Module], nn.Module]) -> TinyNet:
    torch.manual_seed(0)
    net = TinyNet(SMALL)
    shake(net)
    return net


def inputs_of(config: TinyConfig, batch: int = 2) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=random)

    shape = config.latent_shape
    cond = {
        "audio": normal(WINDOW_FRAMES, ROW_DIM),
        "reference": normal(*shape),
        "prefix": normal(PREFIX, *shape),
        "has_audio": torch.ones(batch),
        "has_reference": torch.ones(batch),
        "guidance": torch.full((batch, 2), 2.0),
    }
    return normal(HOP, *shape), torch.linspace(0.3, 0.9, batch), cond


def test_it_is_small() -> None:
    with torch.device("meta"):
        net = TinyNet(tiny_config())
        x_t, t, cond = inputs_like(net)
        with FlopCounterMode(display=False) as counter:
            net(x_t, t, cond)
    assert 2.5e6 < sum(p.numel() for p in net.parameters()) < 2.7e6
    assert 2.6e9 < counter.get_total_flops() < 2.8e9  # a window


def inputs_like(net: TinyNet) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    shape = net.config.latent_shape
    cond = {
        "audio": torch.empty(1, WINDOW_FRAMES, ROW_DIM),
        "reference": torch.empty(1, *shape),
        "prefix": torch.empty(1, PREFIX, *shape),
        "has_audio": torch.empty(1),
        "has_reference": torch.empty(1),
    }
    return torch.empty(1, HOP, *shape), torch.empty(1), cond


def test_before_training_it_draws_the_portrait() -> None:
    net = TinyNet(SMALL).eval()
    x_t, t, cond = inputs_of(SMALL)
    expected = cond["reference"][:, None].expand_as(x_t)
    torch.testing.assert_close(net(x_t, t, cond), expected)


def test_where_there_is_no_past_the_portrait_stands(teacher: TinyNet) -> None:
    x_t, t, cond = inputs_of(SMALL)
    portrait = cond["reference"][:, None].expand(-1, PREFIX, -1, -1, -1)
    nothing = teacher(x_t, t, cond | {"prefix": torch.zeros_like(portrait)})
    torch.testing.assert_close(nothing, teacher(x_t, t, cond | {"prefix": portrait}))
    assert float((nothing - teacher(x_t, t, cond)).abs().max()) > 1e-3


def test_a_condition_that_is_off_does_not_matter(teacher: TinyNet) -> None:
    x_t, t, cond = inputs_of(SMALL)
    for name, flag in (("audio", "has_audio"), ("reference", "has_reference")):
        off = cond | {flag: torch.zeros(2)}
        other = off | {name: cond[name].flip(0)}
        torch.testing.assert_close(teacher(x_t, t, off), teacher(x_t, t, other))
        changed = teacher(x_t, t, cond | {name: cond[name].flip(0)})
        assert float((changed - teacher(x_t, t, cond)).abs().max()) > 1e-3


def test_both_ways_of_guidance_drive_it(teacher: TinyNet) -> None:
    x_t, _, cond = inputs_of(SMALL)
    grid, schedule = uniform_timesteps(2), CosineSchedule()
    three = MultiCFGDenoiser(X0Denoiser(teacher))
    student = tiny_student_of(teacher, True)
    one = CFGTokenDenoiser(X0Denoiser(student), ((1.0, 4.0), (1.0, 3.0)))
    with torch.no_grad():
        guided = sample(three, x_t, grid, cond=cond, schedule=schedule)
        together = sample(one, x_t, grid, cond=cond, schedule=schedule)
        alone = sample(
            one, x_t[1:], grid, cond={k: v[1:] for k, v in cond.items()}, schedule=schedule
        )
    assert guided.shape == x_t.shape
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="takes guidance scales"):
        tiny_student_of(student, True)


def test_a_student_without_tokens_starts_as_its_teacher(teacher: TinyNet) -> None:
    x_t, t, cond = inputs_of(SMALL)
    student = tiny_student_of(teacher, False)
    torch.testing.assert_close(student(x_t, t, cond), teacher(x_t, t, cond))


def test_a_window_without_new_frames_or_without_a_past_is_refused(teacher: TinyNet) -> None:
    x_t, t, cond = inputs_of(SMALL)
    with pytest.raises(ValueError, match="16 rows of audio and 1 frames before"):
        teacher(x_t, t, cond | {"audio": cond["audio"][:, :16], "prefix": cond["prefix"][:, :1]})


def test_patches_lose_nothing() -> None:
    codec = PatchCodec(4)
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    latents = codec.encode(pixels)
    assert latents.shape == (2, codec.latent_channels, 2, 3)
    torch.testing.assert_close(codec.decode(latents), pixels)
    with pytest.raises(ValueError, match="expected multiples of 4"):
        codec.encode(pixels[:, :, :7])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="side = 40, expected a multiple of 16"):
        tiny_config(40)
    with pytest.raises(ValueError, match="expected 3, three colours"):
        replace(SMALL, unet=replace(SMALL.unet, in_channels=4))
    with pytest.raises(ValueError, match="prefix_frames = 0, expected 1 to 12"):
        replace(SMALL, unet=replace(SMALL.unet, prefix_frames=0))
