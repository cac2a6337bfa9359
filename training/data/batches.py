"""Training windows drawn from a corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.audio.log_mel import HOP, HOPS_PER_FRAME, LOOKAHEAD, PREFIX, WINDOW_FRAMES
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, EYES, MOTION_DIM, MOUTH, REFERENCE_DIM
from training.data.augment import VoiceAugmenter
from training.data.corpus import LEAST_LOG_POWER, Corpus
from training.data.phones import Phone, visemes

TRACKED_SHARE = 0.5
FIRST_WINDOW = 0.06  # share of windows that start a session, from the rest
# Share of windows without any sound, the mouth closed and still: the recordings hold no silence
# longer than half a second, a session may be silent for minutes.
SILENT = 0.05
RATE = (0.8, 1.25)  # speech rate, on sound and motion together
STRETCHED = 0.5
BLINK_SHUT = 0.45  # of a lid's travel
# Of what the network is told of the portrait there is one face only: noise keeps it from being
# a switch, and covers other faces.
REFERENCE_NOISE = torch.cat(
    [torch.full((ACTION_COUNT,), 0.15), torch.full((REFERENCE_DIM - ACTION_COUNT,), 0.8)]
)


@dataclass(frozen=True)
class Batch:
    """B windows in the network's units."""

    x0: Tensor  # (B, HOP, 58) the real new frames, normalised
    prefix: Tensor  # (B, PREFIX, 58) normalised and disturbed
    clean_prefix: Tensor  # (B, PREFIX, 58) normalised
    audio: Tensor  # (B, PREFIX + HOP + LOOKAHEAD, ROW_DIM)
    reference: Tensor  # (B, 64)
    lip_gap: Tensor  # (B, HOP) eye-corner distances
    visemes: Tensor  # (B, PREFIX + HOP, classes), see `Corpus.visemes`
    trust: Tensor  # (B,)
    heard: Tensor | None = None  # see `HeardWindows`

    def conditions(self) -> dict[str, Tensor]:
        """Everything on, as the denoisers take it."""
        on = torch.ones(len(self.x0))
        heard = {} if self.heard is None else {"heard": self.heard}
        return {
            "prefix": self.prefix,
            "audio": self.audio,
            "reference": self.reference,
            "has_audio": on,
            "has_reference": on,
            **heard,
        }


class WindowSampler:
    """Draws batches; the same generator state gives the same batch."""

    def __init__(
        self,
        corpus: Corpus,
        mean: Tensor,
        std: Tensor,
        random: torch.Generator,
        tracked_share: float = TRACKED_SHARE,
    ) -> None:
        """``tracked_share``: of windows with tracked motion, where there are others."""
        self._corpus, self._mean, self._std = corpus, mean, std
        self._random = random
        self._augment = VoiceAugmenter()
        self._real = (corpus.trust == 1).nonzero()[:, 0]
        self._nothing = torch.from_numpy(visemes([Phone("SIL", 0.0, 1.0)], 1)[0])
        self._closed = -mean / std  # a mouth of zero motion
        self._lid = ACTIONS.index("eyeBlinkLeft")
        self._shut = (BLINK_SHUT - mean[self._lid]) / std[self._lid]
        self._eyes, self._mouth = (
            torch.tensor([*actions, *(MOTION_DIM - ACTION_COUNT) * [False]])
            for actions in (EYES, MOUTH)
        )
        # a clip is drawn as often as it is long
        self._weights = corpus.frames.float()
        tracked = corpus.trust == 1
        if not bool(tracked.all()):
            ratio = tracked_share / (1 - tracked_share)
            others = self._weights[~tracked].sum()
            self._weights[tracked] *= ratio * others / self._weights[tracked].sum()

    def draw(self, size: int) -> Batch:
        """A batch of ``size`` windows."""
        return self.draw_run(size, 1)[0]

    def draw_run(self, size: int, windows: int) -> list[Batch]:
        """``windows`` batches of ``size``: each the next window of the same clip and voice."""
        with torch.autocast("cpu", enabled=False):  # data is never rounded
            return self._draw_run(size, windows)

    def _draw_run(self, size: int, windows: int) -> list[Batch]:
        corpus, random = self._corpus, self._random
        new = windows * HOP
        clip = torch.multinomial(self._weights, size, replacement=True, generator=random)
        start, rate = self._places(clip, new)
        motion, gap = self._motion(clip, start, rate, new)
        only_mouth = (corpus.trust[clip] < 1)[:, None, None] & ~self._mouth
        motion = torch.where(only_mouth, self._upper_face(start, new), motion)
        motion = self._fewer_blinks(motion, start, new)
        spectra, sounding = self._spectra(clip, start, rate, new)
        silent = torch.rand(size, 1, generator=random) < SILENT
        sounding = sounding & ~silent
        motion = torch.where(silent[:, :, None] & self._mouth, self._closed, motion)
        gap = torch.where(silent, 0.0, gap)
        said = self._said(clip, start, rate, new)
        said = torch.where(silent[:, :, None], self._nothing, said)
        audio = self._augment(spectra, corpus.noise[clip], sounding, random)
        noise = REFERENCE_NOISE * torch.randn(size, REFERENCE_DIM, generator=random)
        reference = corpus.reference[clip] + noise
        return [
            Batch(
                x0=motion[:, at + PREFIX : at + PREFIX + HOP],
                prefix=self._disturbed(motion[:, at : at + PREFIX]),
                clean_prefix=motion[:, at : at + PREFIX],
                audio=audio[:, at : at + WINDOW_FRAMES],
                reference=reference,
                lip_gap=gap[:, at + PREFIX : at + PREFIX + HOP],
                visemes=said[:, at : at + PREFIX + HOP],
                trust=corpus.trust[clip],
            )
            for at in range(0, new, HOP)
        ]

    def _places(self, clip: Tensor, new: int) -> tuple[Tensor, Tensor]:
        """(B,) first new frames and speech rates; the prefix lies wholly in or before the clip."""
        size, random = len(clip), self._random
        rate = RATE[0] + (RATE[1] - RATE[0]) * torch.rand(size, generator=random)
        rate = torch.where(torch.rand(size, generator=random) < STRETCHED, rate, torch.ones(()))
        earliest = PREFIX * rate
        room = (self._corpus.frames[clip] - 1 - (new - 1) * rate - earliest).clamp(min=0)
        start = earliest + room * torch.rand(size, generator=random)
        start = torch.where(torch.rand(size, generator=random) < FIRST_WINDOW, 0.0, start)
        return torch.where(rate == 1, start.round(), start), rate

    def _fewer_blinks(self, motion: Tensor, start: Tensor, new: int) -> Tensor:
        """Windows with a blink get other eyes, which may blink again.

        The tracked speaker blinks 43 times a minute while he reads (most people 15 to 25); drawn
        twice, a window blinks with the square of its chance, which gives about 20.
        """
        blinks = (motion[:, :, self._lid] > self._shut).any(1)[:, None, None]
        return torch.where(blinks & self._eyes, self._upper_face(start, new), motion)

    def _upper_face(self, start: Tensor, new: int) -> Tensor:
        """(B, PREFIX + new, 58) of real clips, for windows of which only the mouth is known.

        A window that starts a session keeps its rest.
        """
        corpus, size = self._corpus, len(start)
        which = torch.randint(len(self._real), (size,), generator=self._random)
        clip = self._real[which]
        room = corpus.frames[clip] - new - PREFIX + 1
        other = PREFIX + (room * torch.rand(size, generator=self._random)).floor()
        other = torch.where(start == 0, 0.0, other)
        return self._motion(clip, other, torch.ones(size), new)[0]

    def _motion(self, clip: Tensor, start: Tensor, rate: Tensor, new: int) -> tuple[Tensor, Tensor]:
        """(B, PREFIX + new, 58) normalised latents and lip gaps (B, PREFIX + new)."""
        corpus = self._corpus
        at = start[:, None] + rate[:, None] * torch.arange(-PREFIX, new)
        last = (corpus.frames[clip] - 1)[:, None]
        low = at.clamp(min=0).floor().long().clamp(max=last)
        high = (low + 1).clamp(max=last)
        part = (at - low).clamp(0, 1)[:, :, None]
        low, high = low + corpus.first[clip, None], high + corpus.first[clip, None]
        motion = torch.lerp(corpus.motion[low], corpus.motion[high], part)
        gap = torch.lerp(corpus.lip_gap[low], corpus.lip_gap[high], part[:, :, 0])
        # before its first frame a face is at rest: zero motion
        motion = motion * (at >= 0)[:, :, None]
        return (motion - self._mean) / self._std, gap

    def _said(self, clip: Tensor, start: Tensor, rate: Tensor, new: int) -> Tensor:
        """(B, PREFIX + new, classes) of `Corpus.visemes`, silence before a clip."""
        corpus = self._corpus
        at = start[:, None] + rate[:, None] * torch.arange(-PREFIX, new)
        last = (corpus.frames[clip] - 1)[:, None]
        nearest = at.clamp(min=0).round().long().clamp(max=last) + corpus.first[clip, None]
        return torch.where((at >= 0)[:, :, None], corpus.visemes[nearest], self._nothing)

    def _spectra(
        self, clip: Tensor, start: Tensor, rate: Tensor, new: int
    ) -> tuple[Tensor, Tensor]:
        """(B, hops, bins) log power and (B, hops) whether there is sound at all."""
        corpus = self._corpus
        hops = torch.arange(-PREFIX * HOPS_PER_FRAME, (new + LOOKAHEAD) * HOPS_PER_FRAME)
        at = start[:, None] * HOPS_PER_FRAME + rate[:, None] * hops
        last = (corpus.frames[clip] * HOPS_PER_FRAME - 1)[:, None]
        inside = (at >= 0) & (at <= last)
        low = at.clamp(min=0).floor().long().clamp(max=last)
        high = (low + 1).clamp(max=last)
        part = (at - low).clamp(0, 1)[:, :, None]
        base = corpus.first[clip, None] * HOPS_PER_FRAME
        spectra = torch.lerp(
            corpus.log_power[low + base].float(), corpus.log_power[high + base].float(), part
        )
        spectra = torch.where(inside[:, :, None], spectra, torch.full((), LEAST_LOG_POWER))
        return spectra, inside

    def _disturbed(self, prefix: Tensor) -> Tensor:
        """The prefix as the network itself might have made it: off by a constant, and rough.

        In use it is the network's own output. Trained on real prefixes only, its small errors
        would add up over minutes.
        """
        size, random = len(prefix), self._random

        def amount(most: float, share: float) -> Tensor:
            drawn = most * torch.rand(size, 1, 1, generator=random)
            return drawn * (torch.rand(size, 1, 1, generator=random) < share)

        # a few are hardly worth reading, so that the sound is always listened to
        poor = amount(1.5, 0.2) * torch.randn(prefix.shape, generator=random)
        offset = torch.randn(size, 1, prefix.shape[2], generator=random)
        rough = torch.randn(prefix.shape, generator=random)
        return prefix + amount(0.35, 0.5) * offset + amount(0.2, 0.5) * rough + poor


class HeardWindows:
    """The windows of ``sampler``, heard by an ``encoder`` that learns no more.

    Teacher and student look at a window several times for one update, and most of what a look costs
    is to encode the sound: here that is done once.
    """

    def __init__(self, sampler: WindowSampler, encoder: nn.Module) -> None:
        self._sampler, self._encoder = sampler, encoder

    def draw(self, size: int) -> Batch:
        """See `WindowSampler.draw`."""
        return self.draw_run(size, 1)[0]

    @torch.no_grad()
    def draw_run(self, size: int, windows: int) -> list[Batch]:
        """See `WindowSampler.draw_run`."""
        drawn = self._sampler.draw_run(size, windows)
        return [replace(batch, heard=self._encoder(batch.audio)) for batch in drawn]
