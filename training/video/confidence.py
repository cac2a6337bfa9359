"""Confidence in a clip: is it sharp, large enough, and does its mouth follow its sound?

    confidence = synchrony · sharpness · pixels,   each clipped to 0 … 1

synchrony  r / 0.4, where r correlates the lip gap with a linear model's prediction from the sound,
           fitted to other clips: 0 when dubbed or when somebody else speaks
sharpness  of the square over half of the folder's median
pixels     source pixels per pixel of the square: below 1 it was enlarged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model.audio.log_mel import HOPS_PER_FRAME, MEL_BINS, log_mel
from model.types import FPS, Floats
from training.linear import ridge, with_neighbours
from training.video.clips import ClipEntry, VideoClips, lip_gaps

FULL_SYNCHRONY_R = 0.4
MAX_LAG = 5  # frames
MIN_GAP_STD = 0.005  # of the lip gap in eye-corner distances: below it a mouth stands still
_REACH = 3  # frames of sound on both sides
_FOLDS = 5
_RIDGE = 300.0


@dataclass(frozen=True)
class Synchrony:
    """``r`` at lag 0, and the lag with the largest r, positive if the picture is late.

    Both are 0 if the mouth stands still.
    """

    r: float
    lag_ms: float


def sharpness(frames: NDArray[np.uint8]) -> float:
    """Sharpness of (T, side, side, 3): the Laplacian's deviation over the picture's, median frame.

    Blur and compression lower it; contrast does not change it.
    """
    values = []
    for picture in frames:
        grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)
        detail = np.asarray(cv2.Laplacian(grey, cv2.CV_32F))
        values.append(float(detail.std() / max(grey.std(), 1.0)))
    return float(np.median(values))


def measure_synchrony(clips: VideoClips) -> list[Synchrony]:
    """The `Synchrony` of each clip. The linear model is cross-validated in five folds."""
    bands = [with_neighbours(_bands(clips, clip), _REACH) for clip in clips.clips]
    sounds = np.concatenate(bands)
    raw = [lip_gaps(clips.marks[clip.span]) for clip in clips.clips]
    gaps = np.concatenate([_standardised(gap) for gap in raw])
    expected = np.zeros_like(gaps)
    folds = np.arange(len(gaps)) * _FOLDS // len(gaps)
    for fold in range(_FOLDS):
        tested = folds == fold
        weights = ridge(sounds[~tested], gaps[~tested], _RIDGE)
        expected[tested] = sounds[tested] @ weights
    borders = np.cumsum([clip.frames for clip in clips.clips])[:-1]
    pairs = zip(np.split(expected, borders), np.split(gaps, borders), strict=True)
    return [
        _synchrony(a, b) if gap.std() > MIN_GAP_STD else Synchrony(0.0, 0.0)
        for (a, b), gap in zip(pairs, raw, strict=True)
    ]


def _bands(clips: VideoClips, clip: ClipEntry) -> Floats:
    """(T, MEL_BINS) log-mel bands of each frame, minus the clip's mean."""
    first, count = clip.first * HOPS_PER_FRAME, clip.frames * HOPS_PER_FRAME
    power = np.exp(clips.log_power[first : first + count].astype(np.float32))
    bands = log_mel(power).reshape(clip.frames, HOPS_PER_FRAME, MEL_BINS).mean(1)
    return np.asarray(bands - bands.mean(0))


def _standardised(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / (values.std() + 1e-3), np.float32)


def _synchrony(expected: Floats, gap: Floats) -> Synchrony:
    def r(lag: int) -> float:
        late, early = gap[max(0, lag) :], expected[max(0, -lag) :]
        count = min(len(late), len(early))
        a, b = late[:count], early[:count]
        spread = float(a.std() * b.std())
        return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 1e-6 else 0.0

    best = max(range(-MAX_LAG, MAX_LAG + 1), key=r)
    return Synchrony(r(0), best * 1000.0 / FPS)


def score_clips(clips: VideoClips) -> tuple[ClipEntry, ...]:
    """The clips with ``sync_r``, ``sync_lag_ms`` and confidence added.

    Their scores must hold ``sharpness`` and ``pixels``.
    """
    median = float(np.median([clip.scores["sharpness"] for clip in clips.clips]))
    found = []
    for clip, sync in zip(clips.clips, measure_synchrony(clips), strict=True):
        scores = clip.scores | {"sync_r": sync.r, "sync_lag_ms": sync.lag_ms}
        found.append(replace(clip, scores=scores, confidence=clip_confidence(scores, median)))
    return tuple(found)


def clip_confidence(scores: dict[str, float], median_sharpness: float) -> float:
    """The formula of the module's docstring, for a clip's ``scores``."""
    parts: Sequence[float] = (
        scores["sync_r"] / FULL_SYNCHRONY_R,
        scores["sharpness"] / max(0.5 * median_sharpness, 1e-6),
        scores["pixels"],
    )
    return float(np.prod(np.clip(parts, 0.0, 1.0)))
