"""Draw training windows from a folder of video clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.audio.log_mel import HOP, HOPS_PER_FRAME, LOOKAHEAD, PREFIX, SPECTRUM_BINS, WINDOW_FRAMES
from model.portrait.blendshapes import MOUTH
from model.types import Floats
from model.video.space import Codec
from training.data.augment import VoiceAugmenter
from training.data.corpus import MIN_LOG_POWER, background, held_out
from training.video.clips import ClipEntry, VideoClips, lip_gaps

FIRST_WINDOW = 0.1  # share of windows that start a session, with the portrait as only past
# Amplitudes of the noise on a prefix, in latent units: low-frequency colour shifts on grids of
# BLOTCHES cells across the square, white noise, contrast.
MAX_SHIFT = 0.4
BLOTCHES = (3, 5, 8, 12)
MAX_ROUGHNESS = 0.1
MAX_CONTRAST = 0.2
MIN_FRAMES = 26  # of a clip: two windows of 12 new frames and the frames before them
_DISTURBED = 0.5  # share of prefixes


@dataclass(frozen=True)
class VideoBatch:
    """B windows of T new frames, latents (C, h, w)."""

    x0: Tensor  # (B, T, C, h, w)
    x0_marks: Tensor  # (B, T, 62, 2) landmarks in sides of the square
    prefix: Tensor  # (B, P, C, h, w) with noise; zeros where a session starts
    clean_prefix: Tensor  # (B, P, C, h, w)
    audio: Tensor  # (B, past + T + lookahead, ...) of an `AudioSource`
    reference: Tensor  # (B, C, h, w)
    marks: Tensor  # (B, 62, 2) landmarks of the portrait
    confidence: Tensor  # (B,) of the data, 0 to 1
    portrait: dict[str, Tensor] = field(default_factory=dict)  # of `PortraitConditions`

    def conditions(self) -> dict[str, Tensor]:
        """The denoiser's conditions, none of them dropped."""
        on = torch.ones_like(self.confidence)
        return {
            "prefix": self.prefix,
            "audio": self.audio,
            "has_audio": on,
            "has_reference": on,
            **self.portrait,
        }

    def to(self, device: torch.device) -> VideoBatch:
        """The same on ``device``, without `portrait`."""
        parts = {name: x.to(device) for name, x in vars(self).items() if name != "portrait"}
        return VideoBatch(**parts)


@dataclass(frozen=True)
class AudioBatch:
    """B stretches of sound and the mouth that goes with it."""

    audio: Tensor  # (B, WINDOW_FRAMES, ROW_DIM)
    mouth: Tensor  # (B, WINDOW_FRAMES, K) of unit variance, see `mouth_shapes`
    known: Tensor  # (B, WINDOW_FRAMES) bool: inside the clip

    def to(self, device: torch.device) -> AudioBatch:
        """The same on ``device``."""
        return AudioBatch(**{name: x.to(device) for name, x in vars(self).items()})


# Portraits' latents (B, C, h, w) and landmarks (B, 62, 2) → conditions of the denoiser.
PortraitConditions = Callable[[Tensor, Tensor], dict[str, Tensor]]


def latent_conditions(latents: Tensor, marks: Tensor) -> dict[str, Tensor]:
    """The `PortraitConditions` of video-tiny, which takes the latent as it is."""
    return {"reference": latents}


class AudioSource(Protocol):
    """Audio features of clips, one row per frame: ``past`` rows before a window's new frames and
    ``lookahead`` rows after them."""

    past: int
    lookahead: int

    def __call__(
        self, which: Tensor, start: Tensor, rows: int, *, random: torch.Generator
    ) -> Tensor:
        """Clips (B,) and first frames (B,), which may precede the clip → (B, rows, ...)."""
        ...


class AugmentedAudio:
    """Log-mel rows as the live front end's, most of them in another voice (`VoiceAugmenter`)."""

    past, lookahead = PREFIX, LOOKAHEAD

    def __init__(self, clips: VideoClips, chosen: Sequence[ClipEntry]) -> None:
        self._clips = clips
        self._first, self._frames = clip_spans(chosen)
        self._noise = torch.from_numpy(np.stack([_background(clips, clip) for clip in chosen]))
        self._augment = VoiceAugmenter()

    def __call__(
        self, which: Tensor, start: Tensor, rows: int, *, random: torch.Generator
    ) -> Tensor:
        """(B, rows, ROW_DIM), see `AudioSource`."""
        hops = start[:, None] * HOPS_PER_FRAME + torch.arange(rows * HOPS_PER_FRAME)
        last = self._frames[which, None] * HOPS_PER_FRAME - 1
        inside = (hops >= 0) & (hops <= last)
        place = torch.minimum(hops.clamp(min=0), last) + self._first[which, None] * HOPS_PER_FRAME
        spectra = torch.from_numpy(self._clips.log_power[place.numpy()]).float()
        spectra = torch.where(inside[:, :, None], spectra, torch.full((), MIN_LOG_POWER))
        return self._augment(spectra, self._noise[which], inside, random=random)


def training_clips(clips: VideoClips) -> list[ClipEntry]:
    """The clips to train on: not held out, long enough, of some confidence, face never lost."""
    kept = held_out(len(clips))
    return [
        clip
        for clip, held in zip(clips.clips, kept, strict=True)
        if not held
        and clip.frames >= MIN_FRAMES
        and clip.confidence > 0
        and clip.scores.get("seen", 1.0) == 1.0
    ]


def held_out_clips(clips: VideoClips, count: int, named: str = "") -> list[ClipEntry]:
    """The first ``count`` held-out clips whose names start with ``named``."""
    kept = held_out(len(clips))
    found = [c for c, held in zip(clips.clips, kept, strict=True) if held]
    seen = [c for c in found if c.scores.get("seen", 1.0) == 1.0]
    return [c for c in seen if c.name.startswith(named)][:count]


def latents_of(clips: VideoClips, index: NDArray[np.int64], codec: Codec) -> Tensor:
    """Latents (*index.shape, C, h, w) of frames ``index``: the stored ones, else by ``codec``."""
    flat = index.reshape(-1)
    if clips.latents is not None:
        latents = torch.from_numpy(clips.latents[flat]).float()
    else:
        pixels = torch.from_numpy(clips.frames[flat]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents = codec.encode(pixels)
    return latents.reshape(*index.shape, *latents.shape[1:])


def mouth_shapes(clips: VideoClips, chosen: Sequence[ClipEntry]) -> Floats:
    """(N, K) for all frames: the mouth's coefficients, last the lip gap.

    Each has zero mean and unit variance over ``chosen``; the variance has a floor.
    """
    gap = lip_gaps(np.asarray(clips.marks))[:, None]
    shapes = np.concatenate([clips.coefficients[:, MOUTH], gap], axis=1)
    of_chosen = np.concatenate([shapes[clip.span] for clip in chosen])
    return np.asarray((shapes - of_chosen.mean(0)) / (of_chosen.std(0) + 0.01), np.float32)


class VideoWindows:
    """Draws batches of ``chosen`` clips; the same generator state gives the same batch.

    Batches are drawn on the CPU, where the folder is mapped, and then moved to ``device``.
    """

    def __init__(
        self,
        clips: VideoClips,
        chosen: Sequence[ClipEntry],
        codec: Codec,
        *,
        prefix_frames: int,
        random: torch.Generator,
        device: torch.device,
        hop: int = HOP,
        audio: AudioSource | None = None,
        portrait_conditions: PortraitConditions = latent_conditions,
    ) -> None:
        """``audio``: `AugmentedAudio` by default. Raises ``ValueError`` if ``chosen`` is empty."""
        if not chosen:
            raise ValueError(f"{clips.folder} holds no clip to learn from, of {len(clips)}")
        self._clips, self._codec, self._prefix, self._hop = clips, codec, prefix_frames, hop
        self._seeds, self._device = random, device
        self._portrait_conditions = portrait_conditions
        with torch.device("cpu"):
            self._random = torch.Generator()
            self._first, self._frames = clip_spans(chosen)
            self._confidence = torch.tensor([clip.confidence for clip in chosen])
            self._audio = AugmentedAudio(clips, chosen) if audio is None else audio
        self._shapes = mouth_shapes(clips, chosen)

    @property
    def mouth_dim(self) -> int:
        """K of `AudioBatch.mouth`."""
        return self._shapes.shape[1]

    def draw(self, size: int) -> VideoBatch:
        """A batch of ``size`` windows."""
        return self.draw_run(size, 1)[0]

    def draw_run(self, size: int, windows: int) -> list[VideoBatch]:
        """``windows`` batches of ``size``: each the next window of the same clip and voice."""
        with self._seeded_on_cpu():
            drawn = self._draw_run(size, windows)
        batches = [batch.to(self._device) for batch in drawn]
        portrait = self._portrait_conditions(batches[0].reference, batches[0].marks)
        return [replace(batch, portrait=portrait) for batch in batches]

    def draw_audio(self, size: int) -> AudioBatch:
        """``size`` stretches of sound with their mouths; reads no picture."""
        with self._seeded_on_cpu():
            which = self._draw_clips(size)
            start = (torch.rand(size, generator=self._random) * self._frames[which]).long()
            audio = self._audio(which, start - PREFIX, WINDOW_FRAMES, random=self._random)
            at = start[:, None] + torch.arange(-PREFIX, WINDOW_FRAMES - PREFIX)
            known = (at >= 0) & (at < self._frames[which, None])
            mouth = torch.from_numpy(self._shapes[self._frame_index(which, at)])
        return AudioBatch(audio, mouth, known).to(self._device)

    @contextmanager
    def _seeded_on_cpu(self) -> Iterator[None]:
        """Draw on the CPU, seeded by the caller's generator."""
        seed = torch.randint(2**62, (1,), generator=self._seeds, device=self._seeds.device)
        self._random.manual_seed(int(seed))
        with torch.device("cpu"):
            yield

    def _draw_run(self, size: int, windows: int) -> list[VideoBatch]:
        random, new = self._random, windows * self._hop
        which = self._draw_clips(size)
        room = (self._frames[which] - new - 1).clamp(min=0)
        start = 1 + (room * torch.rand(size, generator=random)).long()
        first = torch.rand(size, generator=random) < FIRST_WINDOW
        start = torch.where(first, 1, start)
        portrait = (torch.rand(size, generator=random) * self._frames[which]).long()
        # A session starts from its portrait.
        portrait = torch.where(first, start - 1, portrait)
        at = torch.cat([portrait[:, None], start[:, None] + torch.arange(-self._prefix, new)], 1)
        places = self._frame_index(which, at)
        marks = torch.from_numpy(self._clips.marks[places])
        latents = latents_of(self._clips, places, self._codec)
        reference, latents = latents[:, 0], latents[:, 1:]
        around = self._audio.past + self._audio.lookahead
        audio = self._audio(which, start - self._audio.past, new + around, random=random)
        batches = []
        for k in range(0, new, self._hop):
            clean = latents[:, k : k + self._prefix]
            prefix = self._disturbed(clean)
            if k == 0:
                prefix = torch.where(first[:, None, None, None, None], 0.0, prefix)
            new_frames = slice(k + self._prefix, k + self._prefix + self._hop)
            batches.append(
                VideoBatch(
                    x0=latents[:, new_frames],
                    x0_marks=marks[:, 1:][:, new_frames],
                    prefix=prefix,
                    clean_prefix=clean,
                    audio=audio[:, k : k + self._hop + around],
                    reference=reference,
                    marks=marks[:, 0],
                    confidence=self._confidence[which],
                )
            )
        return batches

    def _draw_clips(self, size: int) -> Tensor:
        """(B,) clips, drawn in proportion to their length."""
        lengths = self._frames.float()
        return torch.multinomial(lengths, size, replacement=True, generator=self._random)

    def _frame_index(self, which: Tensor, at: Tensor) -> NDArray[np.int64]:
        """Frames ``at`` (B, F) of clips (B,) → frames of the folder, clamped to the clip."""
        inside = torch.minimum(at.clamp(min=0), self._frames[which, None] - 1)
        return np.asarray((inside + self._first[which, None]).numpy(), np.int64)

    def _disturbed(self, prefix: Tensor) -> Tensor:
        """The prefix (B, P, C, h, w) with errors as a network's own: colours shifted alike in all
        frames, noise, other contrast."""
        size, random = len(prefix), self._random
        drawn = torch.rand(4, size, 1, 1, 1, 1, generator=random)
        chosen = (drawn[0] < _DISTURBED).float()
        # Of three channels, repeated over a patch, so that a uniform patch stays uniform.
        across = BLOTCHES[int(torch.randint(len(BLOTCHES), (1,), generator=random))]
        coarse = torch.randn(size, 3, across, across, generator=random)
        smooth = F.interpolate(coarse, prefix.shape[-2:], mode="bilinear", align_corners=False)
        shades = smooth.repeat_interleave(-(-prefix.shape[2] // 3), dim=1)[
            :, None, : prefix.shape[2]
        ]
        rough = torch.randn(prefix.shape, generator=random)
        contrast = MAX_CONTRAST * (2.0 * drawn[3] - 1.0)
        deviation = prefix - prefix.mean((1, 3, 4), keepdim=True)
        off = (
            contrast * deviation + MAX_SHIFT * drawn[1] * shades + MAX_ROUGHNESS * drawn[2] * rough
        )
        return prefix + chosen * off


def clip_spans(chosen: Sequence[ClipEntry]) -> tuple[Tensor, Tensor]:
    """(C,) first frames in the folder and (C,) lengths in frames."""
    return (
        torch.tensor([clip.first for clip in chosen]),
        torch.tensor([clip.frames for clip in chosen]),
    )


def _background(clips: VideoClips, clip: ClipEntry) -> Floats:
    first, count = clip.first * HOPS_PER_FRAME, clip.frames * HOPS_PER_FRAME
    spectra = np.asarray(clips.log_power[first : first + count])
    if spectra.shape[1] != SPECTRUM_BINS:
        raise ValueError(f"{clips.folder}: spectra of {spectra.shape[1]}, expected {SPECTRUM_BINS}")
    return background(spectra)
