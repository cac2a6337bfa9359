"""Figures of talking videos: pictures, lips and flicker against the true frames.

The Fréchet distance is taken between features of MobileNetV2 (Sandler et al. 2018,
arXiv 1801.04381).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.audio.log_mel import HOP
from model.portrait.face_tracker import FaceTracker
from model.types import FPS, Floats
from model.video.weights import fill, on_meta
from training.data.tracking import TrackedFrame, track
from training.linear import PrincipalAxes

Pictures = NDArray[np.uint8]  # (T, side, side, 3) RGB
# fmt: off
LIPS = np.array([
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
])
# fmt: on
_SSIM_BLUR, _C1, _C2 = 1.5, (0.01 * 255) ** 2, (0.03 * 255) ** 2
_STILL = 1e-6  # in eye-corner distances: a smaller spread of the lip gap is none
_TRACKING_SIDE = 256  # pixels to which frames are enlarged for the tracker
_FEATURE_SIDE = 128  # pixels to which frames are enlarged for MobileNetV2
_FEATURE_DIMS = 48  # principal axes of the real frames' features
# MobileNetV2's stages: expansion, width, blocks, stride.
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_WIDTH = 1280
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def psnr(made: Pictures, true: Pictures, weights: Floats | None = None) -> float:
    """PSNR in dB, mean over frames; ``weights`` (side, side) of the pixels."""
    errors = (made.astype(np.float32) - true.astype(np.float32)) ** 2
    per_pixel = errors.mean(axis=3)
    mean = np.average(per_pixel.reshape(len(made), -1), axis=1,
                      weights=None if weights is None else weights.reshape(-1))  # fmt: skip
    return float(np.mean(10.0 * np.log10(255.0**2 / np.maximum(mean, 1e-3))))


def ssim(made: Pictures, true: Pictures) -> float:
    """Structural similarity of grey pictures (Wang et al. 2004), σ = 1.5, mean over frames."""
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
    """Mean |x(t+1) - 2 x(t) + x(t-1)| in grey levels; steady motion scores 0."""
    return float(np.mean([_tremble(video).mean() for video in videos]))


def border_flicker(videos: Sequence[Pictures]) -> float:
    """`flicker` across window borders over `flicker` elsewhere; 1: borders do not show."""
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


def track_video(video: Pictures, tracker: FaceTracker) -> list[TrackedFrame | None]:
    """The face in every frame, None where none is found."""
    enlarged = (
        (t / FPS, np.asarray(cv2.resize(p, (_TRACKING_SIDE, _TRACKING_SIDE),
                                        interpolation=cv2.INTER_CUBIC), np.uint8))
        for t, p in enumerate(video)
    )  # fmt: skip
    return [frame for _, frame in track(enlarged, tracker)]


Pairs = Sequence[tuple[TrackedFrame | None, TrackedFrame | None]]  # a clip's frames: made, true


def mouth_figures(
    made: Sequence[Sequence[TrackedFrame | None]], true: Sequence[Sequence[TrackedFrame | None]]
) -> dict[str, float]:
    """How made lips follow the true ones, over the frames in which both videos show a face.

    Distances are in eye-corner distances. ``at lag, ms`` is the delay at which the lip gaps
    correlate best; it is left out when lips stand still.
    """
    pairs = [[(a, b) for a, b in zip(m, t, strict=True)] for m, t in zip(made, true, strict=True)]
    seen = [(a, b) for clip in pairs for a, b in clip if a is not None and b is not None]
    found = np.mean([face is not None for clip in made for face in clip])
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
    """Pearson's r, 0 if either is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > _STILL else 0.0


def lip_gap(face: TrackedFrame) -> float:
    """Distance between the middles of the inner lips, in eye-corner distances."""
    return float(np.linalg.norm(face.shape[13, :2] - face.shape[14, :2]))


def _lip_gaps(clips: Sequence[Pairs], lag: int = 0) -> NDArray[np.float64]:
    """(2, N) lip gaps of the made faces and of the true ones ``lag`` frames earlier.

    Each clip's mean is subtracted, as some mouths are ajar at rest.
    """
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
    """Delay of the made lips at which they correlate best with the true ones."""
    scores = {lag: _r(*_lip_gaps(clips, lag)) for lag in range(-most, most + 1)}
    return max(scores, key=lambda lag: scores[lag]) * 1000.0 / FPS


def contact_sheet(columns: int, scale: int, rows: Sequence[Pictures]) -> Pictures:
    """One picture with a row per video: ``columns`` evenly spaced frames, enlarged ``scale`` times.

    Raises ``ValueError`` unless all videos have the same length.
    """
    if len({len(row) for row in rows}) != 1:
        raise ValueError(
            f"videos of {sorted({len(row) for row in rows})} frames, expected one length"
        )
    chosen = np.linspace(0, len(rows[0]) - 1, columns).round().astype(int)
    lines = [np.concatenate(list(row[chosen]), axis=1) for row in rows]
    whole = np.concatenate(lines)
    size = (whole.shape[1] * scale, whole.shape[0] * scale)
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _conv(width_in: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Module:
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(width_in, width, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )


class _InvertedResidual(nn.Module):
    def __init__(self, width_in: int, width: int, expansion: int, *, stride: int) -> None:
        super().__init__()
        inner = expansion * width_in
        widen = [] if expansion == 1 else [_conv(width_in, inner, 1)]
        self.conv = nn.Sequential(
            *widen,
            _conv(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self._residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x + self.conv(x) if self._residual else self.conv(x))


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier: pictures → pooled features."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
        width = 32
        for expansion, wide, blocks, stride in _STAGES:
            for k in range(blocks):
                parts.append(
                    _InvertedResidual(width, wide, expansion, stride=stride if k == 0 else 1)
                )
                width = wide
        self.features = nn.Sequential(*parts, _conv(width, _WIDTH, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W), 0 … 1 → (N, 1280)."""
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1).to(pixels) for v in (_MEAN, _STD))
        return torch.as_tensor(self.features((pixels - mean) / std).mean((2, 3)))


def load_mobilenet(path: Path) -> MobileNetV2:
    """Load torchvision's ``mobilenet_v2-….pth``. Raises ``ValueError`` for any other file."""
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    # Not memory-mapped: the published file has torch's legacy format.
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    net = on_meta(MobileNetV2)
    fill(net, {k: v for k, v in tensors.items() if not k.startswith("classifier.")})
    return net


class FrameFeatures:
    """MobileNetV2 features of frames, on the principal axes of the ``real`` ones."""

    def __init__(self, net: MobileNetV2, real: Sequence[Pictures]) -> None:
        self._net = net
        self._axes = PrincipalAxes(self._rows(real), _FEATURE_DIMS)

    def __call__(self, videos: Sequence[Pictures]) -> NDArray[np.float64]:
        """(N, 48): every second frame of all videos."""
        return self._axes(self._rows(videos))

    def _rows(self, videos: Sequence[Pictures]) -> NDArray[np.float64]:
        rows = []
        for video in videos:
            size = (_FEATURE_SIDE, _FEATURE_SIDE)
            large = np.stack([cv2.resize(p, size) for p in video[::2]])
            pixels = torch.from_numpy(large).permute(0, 3, 1, 2).float() / 255.0
            with torch.inference_mode():
                rows.append(self._net(pixels).numpy())
        return np.concatenate(rows).astype(np.float64)
