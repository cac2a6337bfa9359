"""Training windows drawn from a folder of video clips."""

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
from training.data.corpus import LEAST_LOG_POWER, background, held_out
from training.video.clips import ClipEntry, VideoClips, lip_gaps

FIRST_WINDOW = 0.1  # share of windows that start a session: the portrait is all the past there is
# Of a disturbed prefix, in latent units: colours and shades, smooth over the square or in blotches.
MOST_OFF = 0.4
BLOTCHES = (3, 5, 8, 12)  # across the square
MOST_ROUGH = 0.1
MOST_CONTRAST = 0.2
LEAST_FRAMES = 26  # of a clip: two windows of 12 new frames and what is before them
_DISTURBED = 0.5  # share of prefixes


@dataclass(frozen=True)
class VideoBatch:
    """B windows of T new frames, latents (C, h, w)."""

    x0: Tensor  # (B, T, C, h, w)
    x0_marks: Tensor  # (B, T, 62, 2) in sides of the square
    prefix: Tensor  # (B, P, C, h, w) disturbed; zeros where a session starts
    clean_prefix: Tensor  # (B, P, C, h, w)
    audio: Tensor  # (B, past + T + lookahead, ...) of `AudioSource`
    reference: Tensor  # (B, C, h, w)
    marks: Tensor  # (B, 62, 2) of the portrait
    trust: Tensor  # (B,)
    told: dict[str, Tensor] = field(default_factory=dict)  # of the portrait, see `Tell`

    def conditions(self) -> dict[str, Tensor]:
        """Everything on, as the denoisers take it."""
        on = torch.ones_like(self.trust)
        return {
            "prefix": self.prefix,
            "audio": self.audio,
            "has_audio": on,
            "has_reference": on,
            **self.told,
        }

    def to(self, device: torch.device) -> VideoBatch:
        return VideoBatch(
            self.x0.to(device),
            self.x0_marks.to(device),
            self.prefix.to(device),
            self.clean_prefix.to(device),
            self.audio.to(device),
            self.reference.to(device),
            self.marks.to(device),
            self.trust.to(device),
        )


@dataclass(frozen=True)
class HeardBatch:
    """B stretches of sound and the mouth that goes with it."""

    audio: Tensor  # (B, WINDOW_FRAMES, ROW_DIM)
    mouth: Tensor  # (B, WINDOW_FRAMES, K) of unit variance, see `mouth_shapes`
    known: Tensor  # (B, WINDOW_FRAMES) bool: inside the clip

    def to(self, device: torch.device) -> HeardBatch:
        return HeardBatch(*(part.to(device) for part in vars(self).values()))


# portraits' latents (B, C, h, w) and points (B, 62, 2) → conditions
Tell = Callable[[Tensor, Tensor], dict[str, Tensor]]


def plain(latents: Tensor, marks: Tensor) -> dict[str, Tensor]:
    """A portrait is its latent: video-tiny's own networks look at it."""
    return {"reference": latents}


class AudioSource(Protocol):
    """What is heard of clips: rows, one a frame, ``past`` of them before a window's new frames
    and ``lookahead`` beyond."""

    past: int
    lookahead: int

    def __call__(self, which: Tensor, start: Tensor, rows: int, random: torch.Generator) -> Tensor:
        """Clips (B,), first frames (B,), which may lie before a clip → (B, rows, ...)."""
        ...


class OtherVoices:
    """Log-mel rows as the live front end's, in the clip's own voice or another one."""

    past, lookahead = PREFIX, LOOKAHEAD

    def __init__(self, clips: VideoClips, chosen: Sequence[ClipEntry]) -> None:
        self._clips = clips
        self._first, self._frames = _places(chosen)
        self._noise = torch.from_numpy(np.stack([_background(clips, clip) for clip in chosen]))
        self._augment = VoiceAugmenter()

    def __call__(self, which: Tensor, start: Tensor, rows: int, random: torch.Generator) -> Tensor:
        """(B, rows, ROW_DIM), see `AudioSource`."""
        hops = start[:, None] * HOPS_PER_FRAME + torch.arange(rows * HOPS_PER_FRAME)
        last = self._frames[which, None] * HOPS_PER_FRAME - 1
        inside = (hops >= 0) & (hops <= last)
        place = torch.minimum(hops.clamp(min=0), last) + self._first[which, None] * HOPS_PER_FRAME
        spectra = torch.from_numpy(self._clips.log_power[place.numpy()]).float()
        spectra = torch.where(inside[:, :, None], spectra, torch.full((), LEAST_LOG_POWER))
        return self._augment(spectra, self._noise[which], inside, random)


def training_clips(clips: VideoClips) -> list[ClipEntry]:
    """The clips to learn from: not held out, long enough, believed, the face never lost."""
    kept = held_out(len(clips))
    return [
        clip
        for clip, held in zip(clips.clips, kept, strict=True)
        if not held
        and clip.frames >= LEAST_FRAMES
        and clip.trust > 0
        and clip.scores.get("seen", 1.0) == 1.0
    ]


def held_out_clips(clips: VideoClips, count: int, named: str = "") -> list[ClipEntry]:
    """The first ``count`` clips that no training sees, of those whose names begin so."""
    kept = held_out(len(clips))
    found = [c for c, held in zip(clips.clips, kept, strict=True) if held]
    seen = [c for c in found if c.scores.get("seen", 1.0) == 1.0]
    return [c for c in seen if c.name.startswith(named)][:count]


def latents_of(clips: VideoClips, index: NDArray[np.int64], codec: Codec) -> Tensor:
    """Frames ``index`` of any shape → (*index.shape, C, h, w): as stored, else by ``codec``."""
    flat = index.reshape(-1)
    if clips.latents is not None:
        latents = torch.from_numpy(clips.latents[flat]).float()
    else:
        pixels = torch.from_numpy(clips.frames[flat]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents = codec.encode(pixels)
    return latents.reshape(*index.shape, *latents.shape[1:])


def mouth_shapes(clips: VideoClips, chosen: Sequence[ClipEntry]) -> Floats:
    """(N, K) for all frames: the mouth's coefficients and the lip gap, each of zero mean and unit
    variance over ``chosen``; what never moves stays small."""
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
        prefix_frames: int,
        random: torch.Generator,
        device: torch.device,
        hop: int = HOP,
        sound: AudioSource | None = None,
        tell: Tell = plain,
    ) -> None:
        """``sound`` None: `OtherVoices`."""
        if not chosen:
            raise ValueError(f"{clips.folder} holds no clip to learn from, of {len(clips)}")
        self._clips, self._codec, self._prefix, self._hop = clips, codec, prefix_frames, hop
        self._seeds, self._device, self._tell = random, device, tell
        with torch.device("cpu"):
            self._random = torch.Generator()
            self._first, self._frames = _places(chosen)
            self._trust = torch.tensor([clip.trust for clip in chosen])
            self._sound = OtherVoices(clips, chosen) if sound is None else sound
        self._shapes = mouth_shapes(clips, chosen)

    @property
    def mouth_numbers(self) -> int:
        """K of `HeardBatch.mouth`."""
        return self._shapes.shape[1]

    def draw(self, size: int) -> VideoBatch:
        """A batch of ``size`` windows."""
        return self.draw_run(size, 1)[0]

    def draw_run(self, size: int, windows: int) -> list[VideoBatch]:
        """``windows`` batches of ``size``: each the next window of the same clip and voice."""
        with self._drawing():
            drawn = self._draw_run(size, windows)
        batches = [batch.to(self._device) for batch in drawn]
        told = self._tell(batches[0].reference, batches[0].marks)
        return [replace(batch, told=told) for batch in batches]

    def draw_heard(self, size: int) -> HeardBatch:
        """A batch of sounds with their mouths; no picture is read."""
        with self._drawing():
            which = self._draw_clips(size)
            start = (torch.rand(size, generator=self._random) * self._frames[which]).long()
            audio = self._sound(which, start - PREFIX, WINDOW_FRAMES, self._random)
            at = start[:, None] + torch.arange(-PREFIX, WINDOW_FRAMES - PREFIX)
            known = (at >= 0) & (at < self._frames[which, None])
            mouth = torch.from_numpy(self._shapes[self._placed(which, at)])
        return HeardBatch(audio, mouth, known).to(self._device)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """On the CPU, with numbers that follow from the caller's generator alone."""
        seed = torch.randint(2**62, (1,), generator=self._seeds, device=self._seeds.device)
        self._random.manual_seed(int(seed))
        with torch.device("cpu"):
            yield

    def _draw_run(self, size: int, windows: int) -> list[VideoBatch]:
        random, new = self._random, windows * self._hop
        which = self._draw_clips(size)
        room = (self._frames[which] - new - 1).clamp(min=0)
        start = 1 + (room * torch.rand(size, generator=random)).long()
        fresh = torch.rand(size, generator=random) < FIRST_WINDOW
        start = torch.where(fresh, 1, start)
        portrait = (torch.rand(size, generator=random) * self._frames[which]).long()
        # A session starts as its portrait looks.
        portrait = torch.where(fresh, start - 1, portrait)
        at = torch.cat([portrait[:, None], start[:, None] + torch.arange(-self._prefix, new)], 1)
        places = self._placed(which, at)
        marks = torch.from_numpy(self._clips.marks[places])
        latents = latents_of(self._clips, places, self._codec)
        reference, latents = latents[:, 0], latents[:, 1:]
        around = self._sound.past + self._sound.lookahead
        audio = self._sound(which, start - self._sound.past, new + around, random)
        batches = []
        for k in range(0, new, self._hop):
            clean = latents[:, k : k + self._prefix]
            prefix = self._disturbed(clean)
            if k == 0:
                prefix = torch.where(fresh[:, None, None, None, None], 0.0, prefix)
            said = slice(k + self._prefix, k + self._prefix + self._hop)
            rows = audio[:, k : k + self._hop + around]
            trust = self._trust[which]
            batches.append(
                VideoBatch(
                    latents[:, said],
                    marks[:, 1:][:, said],
                    prefix,
                    clean,
                    rows,
                    reference,
                    marks[:, 0],
                    trust,
                )
            )
        return batches

    def _draw_clips(self, size: int) -> Tensor:
        """(B,) clips, each as often as it is long."""
        lengths = self._frames.float()
        return torch.multinomial(lengths, size, replacement=True, generator=self._random)

    def _placed(self, which: Tensor, at: Tensor) -> NDArray[np.int64]:
        """Places ``at`` (B, F) in clips → frames of the folder; beyond a clip its first or last."""
        inside = torch.minimum(at.clamp(min=0), self._frames[which, None] - 1)
        return np.asarray((inside + self._first[which, None]).numpy(), np.int64)

    def _disturbed(self, prefix: Tensor) -> Tensor:
        """The prefix (B, P, C, h, w) as the network itself might have made it: shades a little
        off, the same in all its frames, rough, of more or less contrast."""
        size, random = len(prefix), self._random
        drawn = torch.rand(4, size, 1, 1, 1, 1, generator=random)
        chosen = (drawn[0] < _DISTURBED).float()
        # An error of few numbers, the same in every pixel of a patch that is of one colour.
        across = BLOTCHES[int(torch.randint(len(BLOTCHES), (1,), generator=random))]
        coarse = torch.randn(size, 3, across, across, generator=random)
        smooth = F.interpolate(coarse, prefix.shape[-2:], mode="bilinear", align_corners=False)
        shades = smooth.repeat_interleave(-(-prefix.shape[2] // 3), dim=1)[
            :, None, : prefix.shape[2]
        ]
        rough = torch.randn(prefix.shape, generator=random)
        contrast = MOST_CONTRAST * (2.0 * drawn[3] - 1.0)
        deviation = prefix - prefix.mean((1, 3, 4), keepdim=True)
        off = contrast * deviation + MOST_OFF * drawn[1] * shades + MOST_ROUGH * drawn[2] * rough
        return prefix + chosen * off


def _places(chosen: Sequence[ClipEntry]) -> tuple[Tensor, Tensor]:
    """(C,) first frames in the folder, (C,) lengths."""
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
