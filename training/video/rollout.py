"""A video network run as it is in service: streaming windows, its own frames as the next prefix."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.audio.log_mel import HOP, WINDOW_FRAMES
from model.audio.stream import windows_of
from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Denoiser, X0Denoiser
from model.diffusion.guidance import guided
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import CosineSchedule
from model.types import Floats, Guidance, ModelMetadata
from model.video.tiny import PatchCodec, TinyNet
from model.video.weights import load_net
from training.video.clips import ClipEntry, VideoClips
from training.video.windows import latents_of

Pictures = NDArray[np.uint8]  # (T, side, side, 3) RGB
_TIMED = 7  # windows


@dataclass(frozen=True)
class Talker:
    """A network with the number of sampler steps and the scales that it is run with."""

    net: TinyNet
    metadata: ModelMetadata
    steps: int
    guidance: Guidance

    @property
    def evaluations(self) -> int:
        """Of the network, a window."""
        return self.steps * (1 if self.net.config.guided else 3)

    @property
    def codec(self) -> PatchCodec:
        return PatchCodec(self.net.config.patch)

    def denoiser(self) -> Denoiser:
        """A new one, which holds what it is told of one window."""
        return guided(X0Denoiser(CachedContext(self.net)), self.metadata.limits)


def load_talker(path: Path, steps: int | None = None) -> Talker:
    """A teacher or student of ``fada train``, at its own number of steps unless told otherwise.

    Raises ``ValueError`` for any other file.
    """
    net, facts = load_net(path, torch.float32)
    if not isinstance(net, TinyNet):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a video-tiny network")
    known = ModelMetadata.parse(facts, guided=net.config.guided)
    return Talker(net, known, steps or known.steps, known.guidance)


def roll_out(
    talker: Talker, clips: VideoClips, chosen: Sequence[ClipEntry], seed: int
) -> list[Pictures]:
    """Each clip said anew from its first frame and its sound, all side by side."""
    features = [_windows(clips.sound(clip)) for clip in chosen]
    index = np.array([[clip.first] for clip in chosen], np.int64)
    portraits = latents_of(clips, index, talker.codec)[:, 0]
    kept = talker.net.config.unet.prefix_frames
    made = torch.zeros(len(chosen), kept, *portraits.shape[1:])  # no past yet
    for k in tqdm(range(max(len(f) for f in features)), unit="window", leave=False):
        # a clip that has ended goes on in the silence of its last window, and is cut below
        rows = np.stack([f[min(k, len(f) - 1)] for f in features])
        noise = _noise(seed, k, len(chosen), portraits.shape[1:])
        window = _sampled(talker, noise, rows, portraits, made[:, -kept:])
        made = torch.cat([made, window], dim=1)
    pictures = [pictures_of(latents[kept:], talker.codec) for latents in made]
    return [p[: clip.frames] for p, clip in zip(pictures, chosen, strict=True)]


def window_ms(talker: Talker) -> float:
    """Milliseconds for one window of one session, the median of some."""
    shape, kept = talker.net.config.latent_shape, talker.net.config.unet.prefix_frames
    rows = np.zeros((1, WINDOW_FRAMES, talker.net.sound.rows.in_features), np.float32)
    spent = []
    for k in range(_TIMED):
        noise = _noise(0, k, 1, shape)
        started = time.perf_counter()
        _sampled(talker, noise, rows, torch.zeros(1, *shape), torch.zeros(1, kept, *shape))
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.median(spent[1:]))


def pictures_of(latents: Tensor, codec: PatchCodec) -> Pictures:
    """(T, C, h, w) → (T, side, side, 3)."""
    pixels = ((codec.decode(latents) + 1.0) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(pixels.to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _sampled(
    talker: Talker, noise: Tensor, rows: Floats, portraits: Tensor, prefix: Tensor
) -> Tensor:
    """(B, HOP, C, h, w) one window of each session."""
    scales = [talker.guidance.audio, talker.guidance.reference]
    cond = {
        "audio": torch.from_numpy(rows),
        "reference": portraits,
        "prefix": prefix,
        "guidance": torch.tensor([scales]).expand(len(noise), 2),
    }
    grid = uniform_timesteps(talker.steps)
    with torch.inference_mode():
        return sample(talker.denoiser(), noise, grid, cond, CosineSchedule())


def _windows(samples: Floats) -> list[Floats]:
    return [w.features for w in windows_of(samples)]


def _noise(seed: int, window: int, sessions: int, shape: Sequence[int]) -> Tensor:
    """(sessions, HOP, *shape); what one session gets does not depend on how many there are."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed * 100_003 + s, window], np.uint64)))
        .standard_normal((HOP, *shape), np.float32)
        for s in range(sessions)
    ]  # fmt: skip
    return torch.from_numpy(np.stack(rows))
