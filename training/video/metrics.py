"""What a talking video is judged by: figures of frames against the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from model.audio.log_mel import HOP
from model.portrait.face_tracker import FaceTracker
from model.types import FPS, Floats
from training.data.tracking import TrackedFrame, looks

Pictures = NDArray[np.uint8]
# fmt: off
LIPS = np.array([
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
])
# fmt: on
_SSIM_BLUR, _C1, _C2 = 1.5, (0.01 * 255) ** 2, (0.03 * 255) ** 2
_STILL = 1e-6  # of the eyes' distance
_LOOK_SIDE = 256  # pixels that frames are enlarged to before a face is looked for


def psnr(made: Pictures, true: Pictures, weights: Floats | None = None) -> float:
    """Decibels, the mean over frames; ``weights`` (side, side) say which pixels count."""
    errors = (made.astype(np.float32) - true.astype(np.float32)) ** 2
    per_pixel = errors.mean(axis=3)
    mean = np.average(per_pixel.reshape(len(made), -1), axis=1,
                      weights=None if weights is None else weights.reshape(-1))  # fmt: skip
    return float(np.mean(10.0 * np.log10(255.0**2 / np.maximum(mean, 1e-3))))


def ssim(made: Pictures, true: Pictures) -> float:
    """Structural similarity of the grey pictures (Wang et al. 2004), σ 1.5, mean over frames."""
    return float(np.mean([_ssim(_grey(a), _grey(b)) for a, b in zip(made, true, strict=True)]))


def _ssim(a: Floats, b: Floats) -> float:
    def blur(x: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(x, (11, 11), _SSIM_BLUR), np.float32)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
    return float((top / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))).mean())


def _grey(picture: Pictures) -> Floats:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32)


def flicker(videos: Sequence[Pictures]) -> float:
    """Mean |x(t+1) - 2 x(t) + x(t-1)| in grey levels: what moves steadily has none."""
    return float(np.mean([_tremble(video).mean() for video in videos]))


def border_flicker(videos: Sequence[Pictures]) -> float:
    """`flicker` where a window's border lies inside the three frames over that elsewhere."""
    at, elsewhere = [], []
    for video in videos:
        tremble = _tremble(video)
        crossing = (np.arange(len(tremble)) + 2) % HOP < 2
        at.append(tremble[crossing])
        elsewhere.append(tremble[~crossing])
    return float(np.concatenate(at).mean() / max(np.concatenate(elsewhere).mean(), 1e-6))


def _tremble(video: Pictures) -> Floats:
    """(T - 2,)"""
    grey = np.stack([_grey(picture) for picture in video])
    return np.asarray(np.abs(np.diff(grey, 2, axis=0)).mean(axis=(1, 2)))


def tracked(video: Pictures, tracker: FaceTracker) -> list[TrackedFrame | None]:
    """The face in every frame, as it is tracked in footage."""
    enlarged = (
        (t / FPS, np.asarray(cv2.resize(p, (_LOOK_SIDE, _LOOK_SIDE),
                                        interpolation=cv2.INTER_CUBIC), np.uint8))
        for t, p in enumerate(video)
    )  # fmt: skip
    return [look for _, look in looks(enlarged, tracker)]


Pairs = Sequence[tuple[TrackedFrame | None, TrackedFrame | None]]  # a clip's frames: made, true


def mouth_figures(
    made: Sequence[Sequence[TrackedFrame | None]], true: Sequence[Sequence[TrackedFrame | None]]
) -> dict[str, float]:
    """What the lips do against what they did, over the frames in which both have a face."""
    pairs = [[(a, b) for a, b in zip(m, t, strict=True)] for m, t in zip(made, true, strict=True)]
    seen = [(a, b) for clip in pairs for a, b in clip if a is not None and b is not None]
    found = np.mean([look is not None for clip in made for look in clip])
    figures = {"face found": float(found)}
    if len(seen) < 3:
        return figures
    off = [np.linalg.norm((a.shape - b.shape)[LIPS, :2], axis=1).mean() for a, b in seen]
    made_gap, true_gap = _lip_gaps(pairs)
    figures["lips off, % of eye distance"] = 100.0 * float(np.mean(off))
    figures["lip gap r"] = _r(made_gap, true_gap)
    if true_gap.std() > _STILL and made_gap.std() > _STILL:
        figures["lip gap spread ×"] = float(made_gap.std() / true_gap.std())
        figures["at lag, ms"] = _lag_ms(pairs)
    return figures


def _r(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's r, 0 where one of them stands still."""
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > _STILL else 0.0


def lip_gap(look: TrackedFrame) -> float:
    """Between the inner lips' middles, in distances of the outer eye corners."""
    return float(np.linalg.norm(look.shape[13, :2] - look.shape[14, :2]))


def _lip_gaps(clips: Sequence[Pairs], lag: int = 0) -> NDArray[np.float64]:
    """(2, N) of the made faces and the true ones ``lag`` frames earlier, less their mean in each
    clip: some mouths are ajar at rest."""
    gaps = [np.zeros((2, 0))]
    for clip in clips:
        both = [
            (lip_gap(a), lip_gap(b))
            for (a, _), (_, b) in zip(clip[max(0, lag) :], clip[max(0, -lag) :], strict=False)
            if a is not None and b is not None
        ]
        if both:
            gaps.append(np.array(both).T - np.mean(both, axis=0)[:, None])
    return np.concatenate(gaps, axis=1)


def _lag_ms(clips: Sequence[Pairs], most: int = 4) -> float:
    """By how much the lips run late where they correlate best with the true ones."""
    scores = {lag: _r(*_lip_gaps(clips, lag)) for lag in range(-most, most + 1)}
    return max(scores, key=lambda lag: scores[lag]) * 1000.0 / FPS


def sheet(columns: int, scale: int, rows: Sequence[Pictures]) -> Pictures:
    """One picture: a row a video, ``columns`` of its frames evenly spaced, each ``scale`` times as
    large. All videos are equally long."""
    if len({len(row) for row in rows}) != 1:
        raise ValueError(
            f"videos of {sorted({len(row) for row in rows})} frames, expected one length"
        )
    chosen = np.linspace(0, len(rows[0]) - 1, columns).round().astype(int)
    lines = [np.concatenate(list(row[chosen]), axis=1) for row in rows]
    whole = np.concatenate(lines)
    size = (whole.shape[1] * scale, whole.shape[0] * scale)
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_NEAREST), np.uint8)
