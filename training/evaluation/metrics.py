"""Figures of motions: mouth against phones, smoothness, blinks, distances to real motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.audio.log_mel import HOP
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, ROTATION
from model.types import FPS, Floats
from training.data.corpus import LipGap
from training.data.phones import BILABIAL, OPEN_VOWELS, Phone, frames_of, openness
from training.linear import PrincipalAxes
from training.losses import CLOSED_GAP

JAW = ACTIONS.index("jawOpen")
BLINK = ACTIONS.index("eyeBlinkLeft")
OPEN_GAP = 0.05  # in eye-corner distances: above it a mouth is visibly open
_BLINK_SHUT, _BLINK_OPEN = 0.45, 0.25
_SETTLE_S = 0.2  # left out at both ends of a silence: lips take this long to settle
_CHUNK, _CHUNK_HOP, _CHUNK_DIMS = 25, 5, 32  # of `MotionFeatures`: frames, frames, axes


@dataclass(frozen=True)
class Utterance:
    """Speech with its phones, to evaluate motion against."""

    samples: Floats  # (N,) at 16 kHz
    phones: list[Phone]
    features: Floats  # (64,) of the reference


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's r of two series (N,)."""
    return float(np.corrcoef(a, b)[0, 1])


def from_first_phone(utterances: Sequence[Utterance], frames: Sequence[int]) -> NDArray[np.bool_]:
    """(N,) mask over all utterances end to end: frames from each one's first phone on.

    Speakers often open the mouth to breathe in earlier before it than a live session's look-ahead
    of 0.16 s can show.
    """
    parts = []
    for utterance, count in zip(utterances, frames, strict=True):
        first = min(p.start_s for p in utterance.phones if p.name != "SIL")
        parts.append(np.arange(count) >= first * FPS)
    return np.concatenate(parts)


def closed_share(gaps: list[Floats], phones: list[list[Phone]]) -> float:
    """Share of /p b m/ in which the lips meet at least once."""
    met = [
        gap[frames].min() < CLOSED_GAP
        for gap, of_clip in zip(gaps, phones, strict=True)
        for p in of_clip
        if p.name in BILABIAL and len(frames := list(frames_of(p, len(gap))))
    ]
    return float(np.mean(met))


def open_share(gaps: list[Floats], phones: list[list[Phone]]) -> float:
    """Share of open vowels of at least 60 ms in which the mouth is visibly open."""
    opened = [
        gap[frames].max() > OPEN_GAP
        for gap, of_clip in zip(gaps, phones, strict=True)
        for p in of_clip
        if p.name in OPEN_VOWELS
        and p.end_s - p.start_s >= 0.06
        and len(frames := list(frames_of(p, len(gap))))
    ]
    return float(np.mean(opened))


def silence_share(gaps: list[Floats], phones: list[list[Phone]]) -> float:
    """Share of silent frames, from 0.2 s after speech to 0.2 s before it, with closed lips."""
    values = []
    for gap, of_clip in zip(gaps, phones, strict=True):
        for p in of_clip:
            end = max(0, round((p.end_s - _SETTLE_S) * FPS))
            if p.name == "SIL":
                values.append(gap[round((p.start_s + _SETTLE_S) * FPS) : end] < CLOSED_GAP)
    return float(np.concatenate(values).mean())


def blinks_per_minute(motions: list[Floats]) -> float:
    """Closures of the left lid: `eyeBlinkLeft` above 0.45 after it was below 0.25."""
    count = 0
    for motion in motions:
        shut = False
        for value in motion[:, BLINK]:
            if not shut and value > _BLINK_SHUT:
                shut, count = True, count + 1
            elif shut and value < _BLINK_OPEN:
                shut = False
    return count / (sum(len(m) for m in motions) / FPS / 60)


def border_jerk(motions: list[Floats], columns: slice | list[int]) -> float:
    """Third difference across window borders over that elsewhere; 1: borders do not show."""
    at, elsewhere = [], []
    for motion in motions:
        jerk = np.abs(np.diff(motion[:, columns], 3, axis=0)).mean(1)
        # The third difference at i spans frames i to i + 3.
        crossing = (np.arange(len(jerk)) + 3) % HOP < 3
        at.append(jerk[crossing])
        elsewhere.append(jerk[~crossing])
    return float(np.concatenate(at).mean() / np.concatenate(elsewhere).mean())


def jerk(motions: list[Floats], columns: slice | list[int]) -> float:
    """Mean size of the third difference from frame to frame."""
    parts = [np.abs(np.diff(m[:, columns], 3, axis=0)).mean(1) for m in motions]
    return float(np.concatenate(parts).mean())


def best_lag(series: list[Floats], truth: list[Floats], most: int = 4) -> tuple[int, float]:
    """The delay of ``series`` in frames at which it correlates best, and that correlation."""
    scores = {}
    for lag in range(-most, most + 1):
        pairs = [
            (s[max(0, lag) : len(s) + min(0, lag)], t[max(0, -lag) : len(t) + min(0, -lag)])
            for s, t in zip(series, truth, strict=True)
        ]
        scores[lag] = correlation(
            np.concatenate([s for s, _ in pairs]), np.concatenate([t for _, t in pairs])
        )
    best = max(scores, key=lambda lag: scores[lag])
    return best, scores[best]


def gaps_of(motions: list[Floats], lip_gap: LipGap) -> list[Floats]:
    """Lip gaps (T,) of motions (T, 58), in eye-corner distances."""
    return [lip_gap(torch.from_numpy(m[:, :ACTION_COUNT])).numpy() for m in motions]


def figures(
    motions: list[Floats], utterances: list[Utterance], lip_gap: LipGap
) -> dict[str, float]:
    """All figures that need no real motion, by name."""
    return figures_from(motions, gaps_of(motions, lip_gap), utterances)


def figures_from(
    motions: list[Floats], gaps: list[Floats], utterances: list[Utterance]
) -> dict[str, float]:
    """`figures`, with the lip gap of each motion."""
    phones = [u.phones for u in utterances]
    wanted = [openness(p, len(g)) for p, g in zip(phones, gaps, strict=True)]
    jaws = [m[:, JAW] for m in motions]
    lag, at_lag = best_lag(jaws, wanted)
    return {
        "phone r": correlation(np.concatenate(jaws), np.concatenate(wanted)),
        "best phone r": at_lag,
        "at lag, ms": lag * 1000 / FPS,
        "/p b m/ closed": closed_share(gaps, phones),
        "open vowels open": open_share(gaps, phones),
        "silence closed": silence_share(gaps, phones),
        "blinks/min": blinks_per_minute(motions),
        "jerk, jaw × 1000": 1000 * jerk(motions, [JAW]),
        "jerk, head × 1000": 1000 * jerk(motions, ROTATION),
        "border jerk, jaw": border_jerk(motions, [JAW]),
        "border jerk, head": border_jerk(motions, ROTATION),
        "head std, rad": float(np.mean([m[:, ROTATION].std(0).mean() for m in motions])),
        "jaw std": float(np.concatenate(jaws).std()),
    }


class MotionFeatures:
    """Features of a second of motion, for the Fréchet distance.

    Mean, standard deviation and mean speed of each latent, in units of the ``real`` deviation, on
    the 32 principal axes of real seconds.
    """

    def __init__(self, real: Sequence[Floats]) -> None:
        self._scale = np.concatenate(real).std(0) + 1e-3
        self._axes = PrincipalAxes(self._rows(real), _CHUNK_DIMS)

    def __call__(self, motions: Sequence[Floats]) -> NDArray[np.float64]:
        """Motions (T, 58) of a second or more → (N, 32), a row every 0.2 s."""
        return self._axes(self._rows(motions))

    def _rows(self, motions: Sequence[Floats]) -> NDArray[np.float64]:
        rows = []
        for motion in motions:
            for start in range(0, len(motion) - _CHUNK + 1, _CHUNK_HOP):
                part = motion[start : start + _CHUNK] / self._scale
                speed = np.abs(np.diff(part, axis=0)).mean(0)
                rows.append(np.concatenate([part.mean(0), part.std(0), speed]))
        return np.asarray(rows, np.float64)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Fréchet distance of Gaussians fitted to (N, D) and (M, D) (Dowson & Landau 1982):
    |μ - ν|² + tr(A + B - 2·(AB)^½)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The eigenvalues of AB are real and not negative; their roots sum to tr (AB)^½.
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    apart = shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum()
    return max(0.0, float(apart))  # rounding may leave it negative


def diversity(by_seed: Sequence[Sequence[Floats]], real_std: Floats) -> float:
    """Standard deviation of an utterance's motion over seeds, in units of ``real_std`` (58,)."""
    spread = [np.stack(samples).std(0) for samples in zip(*by_seed, strict=True)]
    return float((np.concatenate(spread) / (real_std + 1e-3)).mean())
