"""Tiny video networks with random weights, and where the golden tensors lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.video.blocks import reference_places
from model.video.config import MotionConfig, UNetConfig
from model.video.unet3d import DenoisingUNet

Inputs = tuple[Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture(scope="session")
def golden() -> Path:
    """EchoMimic v1's golden tensors, `FADA_TEST_GOLDEN`/echomimic_v1; skips without them."""
    place = os.environ.get("FADA_TEST_GOLDEN")
    if not place:
        pytest.skip("FADA_TEST_GOLDEN is not set: it names the folder with echomimic_v1/")
    return Path(place) / "echomimic_v1"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**changes: object) -> UNetConfig:
    """Two levels, one with attention, unlike any release: nothing may depend on its sizes."""
    sizes: dict[str, object] = {
        "in_channels": 3,
        "out_channels": 3,
        "channels": (12, 20),
        "layers": 1,
        "attention": (True, False),
        "heads": (3, 5),
        "groups": 4,
        "audio_width": 10,
        "motion": MotionConfig(
            down=(True, True), up=(True, True), heads=2, attentions=1, groups=2, positions=9
        ),
    }
    return UNetConfig(**(sizes | changes))  # type: ignore[arg-type]


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """``net`` with no zeros left, which would hide what depends on what."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return net.eval().requires_grad_(False)


def inputs_of(
    config: UNetConfig, batch: int, frames: int = 3, size: tuple[int, int] = (6, 4), seed: int = 0
) -> Inputs:
    """Random latents, times and conditions, all switched on."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=random)

    whole = config.prefix_frames + frames
    cond = {
        "audio": normal(whole, 5, config.audio_width or 1),
        "face": normal(config.channels[0], *size),
        "has_audio": torch.ones(batch),
        "has_reference": torch.ones(batch),
        "guidance": torch.ones(batch, 2),
    }
    if config.prefix_frames:
        cond["prefix"] = normal(config.prefix_frames, config.in_channels, *size)
    for place, (level, width) in reference_places(config).items():
        pixels = (size[0] >> level) * (size[1] >> level)
        cond[f"reference.{place}"] = normal(pixels, width)
    x_t = normal(frames, config.in_channels, *size)
    return x_t, torch.rand(batch, generator=random), cond


@pytest.fixture
def make_config() -> Callable[..., UNetConfig]:
    return tiny


@pytest.fixture
def make_net() -> Callable[..., DenoisingUNet]:
    def make(**changes: object) -> DenoisingUNet:
        torch.manual_seed(1)
        net = DenoisingUNet(tiny(**changes))
        shaken(net)
        return net

    return make


@pytest.fixture
def make_inputs() -> Callable[..., Inputs]:
    return inputs_of


@pytest.fixture
def shake() -> Callable[[nn.Module], nn.Module]:
    return shaken
