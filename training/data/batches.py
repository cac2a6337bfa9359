"""Draw training windows from a corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.audio.log_mel import HOP, HOPS_PER_FRAME, LOOKAHEAD, PREFIX, WINDOW_FRAMES
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, EYES, MOTION_DIM, MOUTH, REFERENCE_DIM
from training.data.augment import VoiceAugmenter
from training.data.corpus import MIN_LOG_POWER, Corpus
from training.data.phones import Phone, visemes

TRACKED_SHARE = 0.5
FIRST_WINDOW = 0.06  # share of windows that start a session, from rest
# Share of windows without sound, with the mouth closed and still: recordings hold no silence longer
# than half a second, but a session may be silent for minutes.
SILENT_SHARE = 0.05
RATE = (0.8, 1.25)  # speech rate, of sound and motion together
STRETCHED_SHARE = 0.5
BLINK_CLOSED = 0.45  # of `eyeBlinkLeft`
# The tracked data has one portrait only: noise keeps its features from acting as a switch, and
# covers other faces.
REFERENCE_NOISE = torch.cat(
    [torch.full((ACTION_COUNT,), 0.15), torch.full((REFERENCE_DIM - ACTION_COUNT,), 0.8)]
)


@dataclass(frozen=True)
class MotionBatch:
    """B windows in the network's units."""

    x0: Tensor  # (B, HOP, 58) the new frames, normalised
    prefix: Tensor  # (B, PREFIX, 58) normalised, with noise
    clean_prefix: Tensor  # (B, PREFIX, 58) normalised
    audio: Tensor  # (B, PREFIX + HOP + LOOKAHEAD, ROW_DIM)
    reference: Tensor  # (B, 64)
    lip_gap: Tensor  # (B, HOP) in eye-corner distances
    visemes: Tensor  # (B, PREFIX + HOP, classes), see `Corpus.visemes`
    confidence: Tensor  # (B,) of the data, 0 to 1
    encoded: Tensor | None = None  # ``audio`` as the encoder gives it, see `EncodedWindows`

    def conditions(self) -> dict[str, Tensor]:
        """The denoiser's conditions, none of them dropped."""
        on = torch.ones(len(self.x0))
        encoded = {} if self.encoded is None else {"audio_tokens": self.encoded}
        return {
            "prefix": self.prefix,
            "audio": self.audio,
            "reference": self.reference,
            "has_audio": on,
            "has_reference": on,
            **encoded,
        }


class WindowSampler:
    """Draws batches; the same generator state gives the same batch."""

    def __init__(
        self,
        corpus: Corpus,
        mean: Tensor,
        std: Tensor,
        *,
        random: torch.Generator,
        tracked_share: float = TRACKED_SHARE,
    ) -> None:
        """``mean`` and ``std`` (58,): normalisation. ``tracked_share``: of windows with tracked
        motion, if ``corpus`` holds other motion as well."""
        self._corpus, self._mean, self._std = corpus, mean, std
        self._random = random
        self._augment = VoiceAugmenter()
        self._real = (corpus.confidence == 1).nonzero()[:, 0]
        self._silence = torch.from_numpy(visemes([Phone("SIL", 0.0, 1.0)], 1)[0])
        self._closed = -mean / std  # zero motion, normalised
        self._lid = ACTIONS.index("eyeBlinkLeft")
        self._lid_closed = (BLINK_CLOSED - mean[self._lid]) / std[self._lid]
        self._eyes, self._mouth = (
            torch.tensor([*actions, *(MOTION_DIM - ACTION_COUNT) * [False]])
            for actions in (EYES, MOUTH)
        )
        # Clips are drawn in proportion to their length.
        self._weights = corpus.frames.float()
        tracked = corpus.confidence == 1
        if not bool(tracked.all()):
            ratio = tracked_share / (1 - tracked_share)
            others = self._weights[~tracked].sum()
            self._weights[tracked] *= ratio * others / self._weights[tracked].sum()

    def draw(self, size: int) -> MotionBatch:
        """A batch of ``size`` windows."""
        return self.draw_run(size, 1)[0]

    def draw_run(self, size: int, windows: int) -> list[MotionBatch]:
        """``windows`` batches of ``size``: each the next window of the same clip and voice."""
        with torch.autocast("cpu", enabled=False):  # keep data in float32
            return self._draw_run(size, windows)

    def _draw_run(self, size: int, windows: int) -> list[MotionBatch]:
        corpus, random = self._corpus, self._random
        new = windows * HOP
        clip = torch.multinomial(self._weights, size, replacement=True, generator=random)
        start, rate = self._starts(clip, new)
        motion, gap = self._motion(clip, start, rate, new=new)
        only_mouth = (corpus.confidence[clip] < 1)[:, None, None] & ~self._mouth
        motion = torch.where(only_mouth, self._upper_face(start, new), motion)
        motion = self._fewer_blinks(motion, start, new)
        spectra, sounding = self._spectra(clip, start, rate, new=new)
        silent = torch.rand(size, 1, generator=random) < SILENT_SHARE
        sounding = sounding & ~silent
        motion = torch.where(silent[:, :, None] & self._mouth, self._closed, motion)
        gap = torch.where(silent, 0.0, gap)
        classes = self._visemes(clip, start, rate, new=new)
        classes = torch.where(silent[:, :, None], self._silence, classes)
        audio = self._augment(spectra, corpus.noise[clip], sounding, random=random)
        noise = REFERENCE_NOISE * torch.randn(size, REFERENCE_DIM, generator=random)
        reference = corpus.reference[clip] + noise
        return [
            MotionBatch(
                x0=motion[:, at + PREFIX : at + PREFIX + HOP],
                prefix=self._disturbed(motion[:, at : at + PREFIX]),
                clean_prefix=motion[:, at : at + PREFIX],
                audio=audio[:, at : at + WINDOW_FRAMES],
                reference=reference,
                lip_gap=gap[:, at + PREFIX : at + PREFIX + HOP],
                visemes=classes[:, at : at + PREFIX + HOP],
                confidence=corpus.confidence[clip],
            )
            for at in range(0, new, HOP)
        ]

    def _starts(self, clip: Tensor, new: int) -> tuple[Tensor, Tensor]:
        """(B,) first new frames and speech rates; a prefix lies entirely in or before its clip."""
        size, random = len(clip), self._random
        rate = RATE[0] + (RATE[1] - RATE[0]) * torch.rand(size, generator=random)
        rate = torch.where(
            torch.rand(size, generator=random) < STRETCHED_SHARE, rate, torch.ones(())
        )
        earliest = PREFIX * rate
        room = (self._corpus.frames[clip] - 1 - (new - 1) * rate - earliest).clamp(min=0)
        start = earliest + room * torch.rand(size, generator=random)
        start = torch.where(torch.rand(size, generator=random) < FIRST_WINDOW, 0.0, start)
        return torch.where(rate == 1, start.round(), start), rate

    def _fewer_blinks(self, motion: Tensor, start: Tensor, new: int) -> Tensor:
        """Replace the eyes of windows with a blink by those of another window.

        The tracked speaker blinks 43 times a minute while reading, most people 15 to 25. Drawn
        twice, a window blinks with the square of its probability, which gives about 20.
        """
        blinks = (motion[:, :, self._lid] > self._lid_closed).any(1)[:, None, None]
        return torch.where(blinks & self._eyes, self._upper_face(start, new), motion)

    def _upper_face(self, start: Tensor, new: int) -> Tensor:
        """(B, PREFIX + new, 58) of tracked clips, for windows with an inferred mouth only.

        A window that starts a session starts from rest here as well.
        """
        corpus, size = self._corpus, len(start)
        which = torch.randint(len(self._real), (size,), generator=self._random)
        clip = self._real[which]
        room = corpus.frames[clip] - new - PREFIX + 1
        other = PREFIX + (room * torch.rand(size, generator=self._random)).floor()
        other = torch.where(start == 0, 0.0, other)
        return self._motion(clip, other, torch.ones(size), new=new)[0]

    def _motion(
        self, clip: Tensor, start: Tensor, rate: Tensor, *, new: int
    ) -> tuple[Tensor, Tensor]:
        """Normalised latents (B, PREFIX + new, 58) and lip gaps (B, PREFIX + new)."""
        corpus = self._corpus
        at = start[:, None] + rate[:, None] * torch.arange(-PREFIX, new)
        last = (corpus.frames[clip] - 1)[:, None]
        low = at.clamp(min=0).floor().long().clamp(max=last)
        high = (low + 1).clamp(max=last)
        part = (at - low).clamp(0, 1)[:, :, None]
        low, high = low + corpus.first[clip, None], high + corpus.first[clip, None]
        motion = torch.lerp(corpus.motion[low], corpus.motion[high], part)
        gap = torch.lerp(corpus.lip_gap[low], corpus.lip_gap[high], part[:, :, 0])
        # Before its first frame a face is at rest: zero motion.
        motion = motion * (at >= 0)[:, :, None]
        return (motion - self._mean) / self._std, gap

    def _visemes(self, clip: Tensor, start: Tensor, rate: Tensor, *, new: int) -> Tensor:
        """(B, PREFIX + new, classes) of `Corpus.visemes`; silence before a clip."""
        corpus = self._corpus
        at = start[:, None] + rate[:, None] * torch.arange(-PREFIX, new)
        last = (corpus.frames[clip] - 1)[:, None]
        nearest = at.clamp(min=0).round().long().clamp(max=last) + corpus.first[clip, None]
        return torch.where((at >= 0)[:, :, None], corpus.visemes[nearest], self._silence)

    def _spectra(
        self, clip: Tensor, start: Tensor, rate: Tensor, *, new: int
    ) -> tuple[Tensor, Tensor]:
        """Log power (B, hops, bins) and a mask (B, hops) of hops inside the clip."""
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
        spectra = torch.where(inside[:, :, None], spectra, torch.full((), MIN_LOG_POWER))
        return spectra, inside

    def _disturbed(self, prefix: Tensor) -> Tensor:
        """The prefix (B, PREFIX, 58) with errors as a network's own: an offset and noise.

        In service the prefix is the network's output. Trained on real prefixes only, its errors
        would accumulate over minutes.
        """
        size, random = len(prefix), self._random

        def amount(most: float, share: float) -> Tensor:
            drawn = most * torch.rand(size, 1, 1, generator=random)
            return drawn * (torch.rand(size, 1, 1, generator=random) < share)

        # A few are mostly noise, so that the network never ignores the sound.
        poor = amount(1.5, 0.2) * torch.randn(prefix.shape, generator=random)
        offset = torch.randn(size, 1, prefix.shape[2], generator=random)
        rough = torch.randn(prefix.shape, generator=random)
        return prefix + amount(0.35, 0.5) * offset + amount(0.2, 0.5) * rough + poor


class EncodedWindows:
    """The windows of ``sampler`` with their audio encoded by a frozen ``encoder``.

    An update evaluates teacher and student several times per window, and most of an evaluation is
    encoding the audio. Here that is done once.
    """

    def __init__(self, sampler: WindowSampler, encoder: nn.Module) -> None:
        self._sampler, self._encoder = sampler, encoder

    def draw(self, size: int) -> MotionBatch:
        """See `WindowSampler.draw`."""
        return self.draw_run(size, 1)[0]

    @torch.no_grad()
    def draw_run(self, size: int, windows: int) -> list[MotionBatch]:
        """See `WindowSampler.draw_run`."""
        drawn = self._sampler.draw_run(size, windows)
        return [replace(batch, encoded=self._encoder(batch.audio)) for batch in drawn]
