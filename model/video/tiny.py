"""video-tiny: the video networks at a size that a CPU trains and runs, joined into one.

Its conditions have the names and meanings of the motion network's, so the same code drives both.
Prediction is x0: patches hold more numbers than so narrow a network could pass on as noise, but
few of them matter to a picture (Li & He 2025, "Back to basics: let denoising generative models
denoise", arXiv 2511.13720).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio.log_mel import LOOKAHEAD, PREFIX, ROW_DIM
from model.diffusion.denoiser import Conditions
from model.video.config import FaceLocatorConfig, TinyConfig
from model.video.face_locator import FaceLocator
from model.video.reference_unet import ReferenceUNet
from model.video.unet3d import DenoisingUNet

GAIN = 2.0  # pixels in -1 … 1 become latents of about unit variance


class PatchCodec:
    """Pixels ↔ latents without loss: each latent pixel holds one patch (space to depth)."""

    def __init__(self, patch: int) -> None:
        self.stride, self.latent_channels = patch, 3 * patch**2

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W), -1 … 1 → (N, 3 · patch², H / patch, W / patch)."""
        if pixels.shape[-2] % self.stride or pixels.shape[-1] % self.stride:
            raise ValueError(
                f"a picture of {pixels.shape[-1]} × {pixels.shape[-2]}, "
                f"expected multiples of {self.stride}"
            )
        return GAIN * F.pixel_unshuffle(pixels, self.stride)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return F.pixel_shuffle(latents / GAIN, self.stride)


class TinyAudioEncoder(nn.Module):
    """Log-mel rows → the audio tokens of each frame: the frame before, its own, and later ones.

    Residual convolutions over ±1 frame each, because a mouth prepares for a sound and lingers
    after it.
    """

    def __init__(self, width: int, layers: int, tokens: int) -> None:
        super().__init__()
        self.rows = nn.Linear(ROW_DIM, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))

    def moments(self, rows: Tensor) -> Tensor:
        """(B, R, ROW_DIM) → (B, R, W): one feature per frame."""
        x = self.rows(rows.to(self.rows.weight.dtype)).transpose(1, 2)
        for layer in self.layers:
            x = x + F.gelu(layer(F.gelu(x)))
        return torch.as_tensor(self.norm(x.transpose(1, 2)))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, R, ROW_DIM) → (B, R, S, W)."""
        count, frames = len(self.places), rows.shape[1]
        around = F.pad(self.moments(rows), (0, 0, 1, count - 2))
        tokens = torch.stack([around[:, i : i + frames] for i in range(count)], dim=2)
        return tokens + self.places


class TinyNet(nn.Module):
    """Audio encoder, reference UNet, portrait encoder and denoising UNet as one network.

    It predicts the difference to the portrait, since most of a face stays as it is. ``portrait``
    is EchoMimic's face locator on the portrait's latent rather than a mask: patches are pixels, so
    they show where the face is.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        unet, channels = config.unet, config.latent_shape[0]
        still = replace(unet, audio_width=None, motion=None, prefix_frames=0, guided=False)
        first = unet.channels[0]
        self.audio_encoder = TinyAudioEncoder(
            unet.audio_width or 0, config.audio_layers, config.audio_tokens
        )
        self.reference = ReferenceUNet(still)
        self.portrait = FaceLocator(FaceLocatorConfig(channels, (first,), first))
        self.unet = DenoisingUNet(unet)
        nn.init.zeros_(self.unet.conv_out.weight)
        if self.unet.conv_out.bias is not None:
            nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """``x_t`` (B, T, C, h, w), ``t`` (B,) → x0_hat like ``x_t``.

        ``cond``: ``audio`` (B, PREFIX + T + LOOKAHEAD, ROW_DIM) rows around the window,
        ``reference`` (B, C, h, w) the portrait's latent, ``prefix`` (B, any, C, h, w) the clean
        frames before, of which the last `UNetConfig.prefix_frames` are used; zeros where there are
        none yet, which the portrait replaces. ``has_audio`` and ``has_reference`` (B,) of 0 or 1,
        or for a student ``guidance`` (B, 2): audio scale, reference scale.
        """
        return self.denoise(x_t, t, self.context(cond))

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        """What `denoise` needs of the conditions of `forward`: computed once per window."""
        kept = self.config.unet.prefix_frames
        rows, portrait, past = cond["audio"], cond["reference"], cond["prefix"]
        frames = rows.shape[1] - PREFIX - LOOKAHEAD
        if frames < 1 or past.shape[1] < kept:
            raise ValueError(
                f"{rows.shape[1]} rows of audio and {past.shape[1]} frames before the window, "
                f"expected more than {PREFIX + LOOKAHEAD} and at least {kept}"
            )
        flags = () if self.config.guided else ("has_audio", "has_reference")
        _, bank = self.reference(portrait)
        given = {f"reference.{place}": features for place, features in bank.items()}
        given |= {name: cond[name] for name in (*flags, "guidance") if name in cond}
        base = portrait
        if flags:
            base = portrait * cond["has_reference"].to(portrait)[:, None, None, None]
        used = torch.arange(PREFIX - kept, PREFIX + frames, device=rows.device)
        given["audio"] = self.audio_encoder(rows).index_select(1, used)
        given["face"] = self.portrait(portrait)
        last = past[:, past.shape[1] - kept :]
        nothing = last.abs().amax(dim=(1, 2, 3, 4), keepdim=True) == 0
        given["prefix"] = torch.where(nothing, base[:, None], last)
        return base, *self.unet.context(given)

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """``x_t``, ``t`` and the `context` of the same rows → x0_hat like ``x_t``."""
        base, *parts = context
        return base[:, None] + self.unet.denoise(x_t, t, tuple(parts))


def tiny_student_of(teacher: TinyNet, guided: bool, embedded_scales: bool = False) -> TinyNet:
    """A student that starts as ``teacher`` and, if ``guided``, takes the scales, which at first
    change nothing; see `UNetConfig`.

    Raises ``ValueError`` when ``teacher`` is a student itself.
    """
    if teacher.config.guided:
        raise ValueError("not a teacher's network: it takes guidance scales")
    unet = replace(teacher.config.unet, guided=guided, embedded_scales=embedded_scales)
    student = TinyNet(replace(teacher.config, unet=unet))
    student.load_state_dict(student.state_dict() | teacher.state_dict())
    return student
