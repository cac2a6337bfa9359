"""How far a clip is believed: is it sharp, large enough, and does its mouth follow its sound?

    trust = synchrony · sharpness · pixels,   each from 0 to 1

synchrony  r of the lip gap with what a linear model, fitted to the other clips, expects of the
           sound: 0 at r ≤ 0 (dubbed, a voice-over, somebody else speaking), 1 from r = 0.4 on
sharpness  detail in the square over half of the folder's median
pixels     of the source for each of the square's: below 1 it was enlarged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model.audio.log_mel import HOPS_PER_FRAME, MEL_BINS, log_mel
from model.types import FPS, Floats
from training.video.clips import ClipEntry, VideoClips, lip_gaps

SURE_R = 0.4
MOST_LAG = 5  # frames
LEAST_MOVED = 0.005  # spread of the lip gap, in eye distances: below it a mouth stands still
_REACH = 3  # frames of sound to each side
_FOLDS = 5
_RIDGE = 300.0


@dataclass(frozen=True)
class Synchrony:
    """``r`` where sound and picture are taken as they are, and the lag at which it is largest:
    positive where the picture is late. Both are 0 where the mouth stands still."""

    r: float
    lag_ms: float


def sharpness(frames: NDArray[np.uint8]) -> float:
    """Detail of (T, side, side, 3): the Laplacian's spread over the picture's, the median frame.

    Blur and compression take it away, contrast does not change it.
    """
    values = []
    for picture in frames:
        grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)
        detail = np.asarray(cv2.Laplacian(grey, cv2.CV_32F))
        values.append(float(detail.std() / max(grey.std(), 1.0)))
    return float(np.median(values))


def synchronies(clips: VideoClips) -> list[Synchrony]:
    """One a clip, in order. The linear model never saw the stretch that it judges."""
    sounds = np.concatenate([_around(_bands(clips, clip)) for clip in clips.clips])
    raw = [lip_gaps(clips.marks[clip.span]) for clip in clips.clips]
    gaps = np.concatenate([_standardised(gap) for gap in raw])
    expected = np.zeros_like(gaps)
    folds = np.arange(len(gaps)) * _FOLDS // len(gaps)
    for fold in range(_FOLDS):
        judged = folds == fold
        expected[judged] = _ridge(sounds[~judged], gaps[~judged], sounds[judged])
    borders = np.cumsum([clip.frames for clip in clips.clips])[:-1]
    pairs = zip(np.split(expected, borders), np.split(gaps, borders), strict=True)
    return [
        _synchrony(a, b) if gap.std() > LEAST_MOVED else Synchrony(0.0, 0.0)
        for (a, b), gap in zip(pairs, raw, strict=True)
    ]


def _bands(clips: VideoClips, clip: ClipEntry) -> Floats:
    """(T, MEL_BINS) of a frame, less the clip's mean."""
    first, count = clip.first * HOPS_PER_FRAME, clip.frames * HOPS_PER_FRAME
    power = np.exp(clips.log_power[first : first + count].astype(np.float32))
    bands = log_mel(power).reshape(clip.frames, HOPS_PER_FRAME, MEL_BINS).mean(1)
    return np.asarray(bands - bands.mean(0))


def _around(bands: Floats) -> Floats:
    """(T, MEL_BINS) → (T, 7 · MEL_BINS): each frame with its neighbours."""
    padded = np.pad(bands, ((_REACH, _REACH), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(bands)] for i in range(2 * _REACH + 1)], axis=1)


def _standardised(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / (values.std() + 1e-3), np.float32)


def _ridge(x: Floats, y: Floats, asked: Floats) -> Floats:
    gram = x.T.astype(np.float64) @ x + _RIDGE * np.eye(x.shape[1])
    return np.asarray(asked @ np.linalg.solve(gram, x.T @ y.astype(np.float64)), np.float32)


def _synchrony(expected: Floats, gap: Floats) -> Synchrony:
    def r(lag: int) -> float:
        late, early = gap[max(0, lag) :], expected[max(0, -lag) :]
        count = min(len(late), len(early))
        a, b = late[:count], early[:count]
        spread = float(a.std() * b.std())
        return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 1e-6 else 0.0

    best = max(range(-MOST_LAG, MOST_LAG + 1), key=r)
    return Synchrony(r(0), best * 1000.0 / FPS)


def judged(clips: VideoClips) -> tuple[ClipEntry, ...]:
    """The clips with their ``sync_r``, ``sync_lag_ms`` and trust; ``sharpness`` and ``pixels``
    must be there."""
    median = float(np.median([clip.scores["sharpness"] for clip in clips.clips]))
    found = []
    for clip, sync in zip(clips.clips, synchronies(clips), strict=True):
        scores = clip.scores | {"sync_r": sync.r, "sync_lag_ms": sync.lag_ms}
        found.append(replace(clip, scores=scores, trust=trust_of(scores, median)))
    return tuple(found)


def trust_of(scores: dict[str, float], median_sharpness: float) -> float:
    """See the module."""
    parts: Sequence[float] = (
        scores["sync_r"] / SURE_R,
        scores["sharpness"] / max(0.5 * median_sharpness, 1e-6),
        scores["pixels"],
    )
    return float(np.prod(np.clip(parts, 0.0, 1.0)))
