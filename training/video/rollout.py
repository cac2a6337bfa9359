"""Run a video-tiny network as in service: window by window, each prefixed by its own frames."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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
from training.video.metrics import Pictures
from training.video.windows import latents_of

_TIMED_WINDOWS = 7


@dataclass(frozen=True)
class VideoModel:
    """A network with its number of sampler steps and its guidance scales."""

    net: TinyNet
    metadata: ModelMetadata
    steps: int
    guidance: Guidance

    @property
    def nfe(self) -> int:
        """Network evaluations per window."""
        return self.steps * (1 if self.net.config.guided else 3)

    @property
    def codec(self) -> PatchCodec:
        """Between pixels and latents."""
        return PatchCodec(self.net.config.patch)

    def denoiser(self) -> Denoiser:
        """A new denoiser, to be used for one window: it caches the context of the conditions."""
        return guided(X0Denoiser(CachedContext(self.net)), self.metadata.limits)


def load_video_model(path: Path, steps: int | None = None) -> VideoModel:
    """Load a teacher or student of video-tiny, with its own number of steps by default.

    Raises ``ValueError`` for any other file.
    """
    net, metadata = load_net(path, torch.float32)
    if not isinstance(net, TinyNet):
        raise ValueError(f"{path} holds a {type(net).__name__}, expected a video-tiny network")
    known = ModelMetadata.parse(metadata, guided=net.config.guided)
    return VideoModel(net, known, steps or known.steps, known.guidance)


def roll_out(
    model: VideoModel, clips: VideoClips, chosen: Sequence[ClipEntry], *, seed: int
) -> list[Pictures]:
    """Generate each clip from its first frame and its sound, all in one batch."""
    features = [_windows(clips.sound(clip)) for clip in chosen]
    index = np.array([[clip.first] for clip in chosen], np.int64)
    portraits = latents_of(clips, index, model.codec)[:, 0]
    kept = model.net.config.unet.prefix_frames
    made = torch.zeros(len(chosen), kept, *portraits.shape[1:])
    for k in tqdm(range(max(len(f) for f in features)), unit="window", leave=False):
        # A clip that has ended repeats its last window; the surplus is cut off below.
        rows = np.stack([f[min(k, len(f) - 1)] for f in features])
        noise = _noise(seed, k, portraits.shape)
        window = _sample(model, noise, rows, portraits=portraits, prefix=made[:, -kept:])
        made = torch.cat([made, window], dim=1)
    pictures = [pictures_of(latents[kept:], model.codec) for latents in made]
    return [p[: clip.frames] for p, clip in zip(pictures, chosen, strict=True)]


def window_ms(model: VideoModel) -> float:
    """Median milliseconds per window of a single session."""
    shape, kept = model.net.config.latent_shape, model.net.config.unet.prefix_frames
    rows = np.zeros((1, WINDOW_FRAMES, model.net.audio_encoder.rows.in_features), np.float32)
    spent = []
    for k in range(_TIMED_WINDOWS):
        noise = _noise(0, k, (1, *shape))
        portrait, prefix = torch.zeros(1, *shape), torch.zeros(1, kept, *shape)
        started = time.perf_counter()
        _sample(model, noise, rows, portraits=portrait, prefix=prefix)
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.median(spent[1:]))


def pictures_of(latents: Tensor, codec: PatchCodec) -> Pictures:
    """Latents (T, C, h, w) → (T, side, side, 3)."""
    pixels = ((codec.decode(latents) + 1.0) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(pixels.to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _sample(
    model: VideoModel, noise: Tensor, rows: Floats, *, portraits: Tensor, prefix: Tensor
) -> Tensor:
    """(B, HOP, C, h, w) the next window of each session."""
    scales = [model.guidance.audio, model.guidance.reference]
    cond = {
        "audio": torch.from_numpy(rows),
        "reference": portraits,
        "prefix": prefix,
        "guidance": torch.tensor([scales]).expand(len(noise), 2),
    }
    grid = uniform_timesteps(model.steps)
    with torch.inference_mode():
        return sample(model.denoiser(), noise, grid, cond=cond, schedule=CosineSchedule())


def _windows(samples: Floats) -> list[Floats]:
    return [w.features for w in windows_of(samples)]


def _noise(seed: int, window: int, shape: Sequence[int]) -> Tensor:
    """(B, HOP, C, h, w) for ``shape`` (B, C, h, w); a session's noise is independent of B."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed * 100_003 + s, window], np.uint64)))
        .standard_normal((HOP, *shape[1:]), np.float32)
        for s in range(shape[0])
    ]  # fmt: skip
    return torch.from_numpy(np.stack(rows))
