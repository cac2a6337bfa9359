"""From a portrait to a reference, and from latents back to frames that sit where they belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.portrait.face_tracker import NoFaceError
from model.portrait.image import load_picture
from model.types import Reference
from model.video.config import FaceLocatorConfig, UNetConfig, VAEConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.space import ReferenceEncoder, VideoSpace
from model.video.unet3d import DenoisingUNet
from model.video.vae import VAE

SIDE = 256
STRIDE = 4


class Exact(VAE):
    """An autoencoder that loses nothing: it moves each 4 × 4 pixels into channels."""

    def __init__(self) -> None:
        super().__init__(VAEConfig((4, 4, 4), 1, 3 * STRIDE**2, 2))

    def encode(self, pixels: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels, STRIDE)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, STRIDE)


@pytest.fixture(scope="module")
def space() -> VideoSpace:
    return VideoSpace(Exact(), SIDE)


@pytest.fixture(scope="module")
def picture(examples: Path) -> np.ndarray:
    return load_picture((examples / "presenter.jpg").read_bytes())


@pytest.fixture(scope="module")
def reference(space: VideoSpace, picture: np.ndarray) -> Reference:
    return Reference.from_bytes(space.encode_reference(picture).to_bytes())


def test_a_reference_holds_the_squares_latent(space: VideoSpace, reference: Reference) -> None:
    assert space.latent_shape == (48, 64, 64)
    assert reference.features.shape == (space.dim,)
    assert reference.face_confidence > 0.5
    x0, y0, x1, y1, side = reference.arrays["face"]
    assert side == SIDE and 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE
    assert 0.3 < (y1 - y0) / SIDE < 0.9  # head and shoulders


@pytest.mark.parametrize("size", [128, SIDE, 512])
def test_the_squares_latent_draws_the_square(
    space: VideoSpace, reference: Reference, size: int
) -> None:
    decoder = space.decoder(reference, size, "portrait")
    frames = list(decoder.decode(np.stack([reference.features] * 5)))
    assert (decoder.width, decoder.height) == (size, size)
    assert [f.shape for f in frames] == [(size, size, 3)] * 5
    assert all(f.dtype == np.uint8 and np.array_equal(f, frames[0]) for f in frames)


@pytest.mark.parametrize("size", [256, 640])
def test_full_framing_puts_it_back_where_it_was(
    space: VideoSpace, reference: Reference, picture: np.ndarray, size: int
) -> None:
    decoder = space.decoder(reference, size, "full")

    def draw(latent: np.ndarray) -> np.ndarray:
        return next(decoder.decode(latent[None])).astype(float)

    drawn, black = draw(reference.features), draw(np.full(space.dim, -1.0, np.float32))
    white = draw(np.ones(space.dim, np.float32))
    assert max(drawn.shape[:2]) == size
    touched = (white - black).max(axis=2) > 0.5
    assert 0.1 < touched.mean() < 0.95
    assert np.abs(drawn - black)[~touched].max() <= 1.0
    # The square drawn over the picture it was cut from: not sharper than it, but in its place.
    plain = cv2.resize(picture, drawn.shape[1::-1], interpolation=cv2.INTER_AREA).astype(float)
    gap = np.abs(drawn - plain).mean()
    assert gap < 4.0
    assert gap < 0.5 * min(
        np.abs(np.roll(drawn, shift, axis) - plain)[4:-4, 4:-4].mean()
        for shift in (-2, 2)
        for axis in (0, 1)
    )


def test_the_first_prefix_is_no_past(space: VideoSpace) -> None:
    assert not space.rest_prefix(3).any() and space.rest_prefix(3).shape == (3, space.dim)


def test_a_reference_becomes_the_networks_conditions(
    picture: np.ndarray,
    make_config: Callable[..., UNetConfig],
    make_inputs: Callable[..., tuple[Tensor, Tensor, dict[str, Tensor]]],
) -> None:
    space = VideoSpace(Exact(), 64)
    reference = space.encode_reference(picture)
    still = make_config(in_channels=48, audio_width=None, motion=None)
    locator = FaceLocator(FaceLocatorConfig(1, (2, 3, 4), 12)).eval()
    encoder = ReferenceEncoder(ReferenceUNet(still).eval(), locator, space.latent_shape)
    made = encoder(reference)
    config = make_config(in_channels=48, out_channels=48)
    net = DenoisingUNet(config).eval().requires_grad_(False)
    x_t, t, cond = make_inputs(config, 1, frames=2, size=space.latent_shape[1:])
    fixed = {k for k in net.condition_names if k == "face" or k.startswith("reference.")}
    assert set(made) == fixed
    assert net(x_t, t, cond | made).shape == x_t.shape


def test_wrong_options_are_named(space: VideoSpace, reference: Reference) -> None:
    with pytest.raises(ValueError, match="framing = 'round'"):
        space.decoder(reference, 256, "round")
    with pytest.raises(ValueError, match="size = 255"):
        space.decoder(reference, 255, "portrait")
    with pytest.raises(ValueError, match="side = 250, expected a multiple of 4"):
        VideoSpace(Exact(), 250)
    other = Reference.from_bytes(reference.to_bytes())
    object.__setattr__(other, "latent_space", "motion")
    with pytest.raises(ValueError, match="'motion' latent space, expected 'video'"):
        space.decoder(other, 256, "portrait")


def test_a_close_square_sits_in_the_portrait(picture: np.ndarray) -> None:
    space = VideoSpace(Exact(), 64, "close", view="face")
    reference = space.encode_reference(picture)
    assert reference.latent_space == "close"
    for framing in ("portrait", "full"):
        decoder = space.decoder(reference, 256, framing)
        dark, bright, drawn = (
            next(decoder.decode(latent[None])).astype(float)
            for latent in (
                np.full(space.dim, -1.0, np.float32),
                np.ones(space.dim, np.float32),
                reference.features,
            )
        )
        touched = (bright - dark).max(axis=2) > 0.5
        assert 0.02 < touched.mean() < 0.8
        assert np.abs(drawn - dark)[~touched].max() <= 1.0  # all around stays the picture
        rows = np.flatnonzero(touched.any(axis=1))
        assert rows[0] > 0 and rows[-1] < 255  # hair above it, shoulders below
    portrait = VideoSpace(Exact(), 256).encode_reference(picture)
    x0, _, x1, _, side = reference.arrays["face"]
    wide = (x1 - x0) / side
    x0, _, x1, _, side = portrait.arrays["face"]
    assert wide > 1.3 * (x1 - x0) / side


def test_a_picture_without_a_face_is_refused(space: VideoSpace) -> None:
    with pytest.raises(NoFaceError):
        space.encode_reference(np.full((200, 200, 3), 127, np.uint8))


def test_the_real_autoencoder_comes_in_any_size(examples: Path, picture: np.ndarray) -> None:
    torch.manual_seed(0)
    small = VideoSpace(VAE(VAEConfig((4, 4, 8), 1, 4, 2)).eval().requires_grad_(False), 64)
    reference = small.encode_reference(picture)
    assert reference.features.shape == (4 * 16 * 16,)
    frames = list(small.decoder(reference, 128, "portrait").decode(reference.features[None]))
    assert [f.shape for f in frames] == [(128, 128, 3)]
