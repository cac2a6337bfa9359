"""Kernel distance of drawn mouths to real ones, and whether any copies a mouth of training.

KID (Bińkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy, unbiased, of a
cubic kernel between features of MobileNetV2. Only pixels inside the inner lips count. The features
depend on the contour more than on what is in it, so two mouths are compared inside both contours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from model.rendering.raster import distance_map

Features = NDArray[np.float64]  # (N, 1280)
Contour = NDArray[np.floating]  # (20, 2)
Crop = tuple[NDArray[np.uint8], Contour]
Network = Callable[[torch.Tensor], torch.Tensor]
GREY = np.array([124, 116, 104])  # ImageNet's mean: what lies outside the lips
WINDOW = (slice(56, 152), slice(48, 208))  # rows and columns of a crop that hold all contours
# Both kinds are seen at the resolution of a mouth in a 512 pixel portrait, then enlarged.
REDUCED, SEEN = (128, 88), (256, 176)
SKIN_FROM = 24.0  # pixels of a crop outside the contour
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure × 1000 and the interval that 95 % of bootstrap samples give."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def inside(picture: NDArray[np.uint8], *rings: Contour) -> NDArray[np.uint8]:
    """The mouth of a crop (176, 256, 3), grey outside any contour, as the network sees it."""
    seen = cv2.resize(cv2.resize(picture, REDUCED, interpolation=cv2.INTER_AREA), SEEN)
    # A pixel and a half within the contour: lips are not what is compared.
    within = np.minimum.reduce([distance_map(ring, seen.shape[:2]) for ring in rings])
    cover = np.clip(within - 1.0, 0.0, 1.0)[..., None]
    masked = (seen * cover + GREY * (1.0 - cover)).round().astype(np.uint8)
    return np.asarray(masked[WINDOW])


def lightness(picture: NDArray[np.uint8], ring: NDArray[np.floating]) -> NDArray[np.float64]:
    """(2,): how light the mouth of a crop is, its median and its lightest tenth, over the skin.

    NaN where the lips are closed.
    """
    within, light = distance_map(ring, picture.shape[:2]), picture @ (0.299, 0.587, 0.114)
    skin = float(np.median(light[within < -SKIN_FROM]))
    seen = light[within > 2.0]
    return np.quantile(seen, (0.5, 0.9)) / max(skin, 1.0) if len(seen) else np.full(2, np.nan)


def features(net: Network, crops: Sequence[Crop], *, also: Sequence[Contour] = ()) -> Features:
    """Of what is inside the lips and, where given, inside ``also``, a contour a crop."""
    rings = [(ring,) for ring in also] or [()] * len(crops)
    masked = [inside(*crop, *more) for crop, more in zip(crops, rings, strict=True)]
    pictures, rows = np.stack(masked), []
    for start in range(0, len(pictures), 32):
        pixels = torch.from_numpy(pictures[start : start + 32]).permute(0, 3, 1, 2).float() / 255.0
        large = torch.nn.functional.interpolate(pixels, scale_factor=1.5, mode="bilinear")
        with torch.inference_mode():
            rows.append(net(large).numpy())
    return np.concatenate(rows).astype(np.float64)


def most_alike(rings: Contour, others: Contour) -> list[int]:
    """For each of ``rings`` (N, 20, 2) the index of the likest of ``others`` (M, 20, 2), M >= N.

    None is taken twice.
    """
    apart = np.abs(rings[:, None] - others[None]).sum(axis=(2, 3))
    taken = []
    for row in apart:
        taken.append(int(row.argmin()))
        apart[:, taken[-1]] = np.inf
    return taken


def kid(a: Features, b: Features, *, groups: Sequence[object]) -> Estimate:
    """KID × 1000 of ``a`` to ``b``; ``groups`` names who drew each of ``a``, to sample by."""
    kernels = tuple((p @ q.T / p.shape[1] + 1.0) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    rng = np.random.default_rng(0)
    names, member = np.unique(np.array(groups, dtype=str), return_inverse=True)

    def resampled() -> float:
        of_group = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        of_b = np.bincount(rng.integers(0, len(b), len(b)), minlength=len(b))
        return _discrepancy(*kernels, of_group[member].astype(float), of_b.astype(float))

    spread = np.quantile([resampled() for _ in range(BOOTSTRAPS)], (0.025, 0.975))
    whole = _discrepancy(*kernels, np.ones(len(a)), np.ones(len(b)))
    return Estimate(*(1000.0 * np.array([whole, *spread])).tolist())


def _discrepancy(aa: Features, bb: Features, ab: Features, u: Features, v: Features) -> float:
    """Unbiased, of samples that hold each row ``u`` (N,) or ``v`` (M,) times."""

    def within(kernel: Features, count: Features) -> float:
        pairs = count.sum() ** 2 - (count**2).sum()
        return float((count @ kernel @ count - (count**2) @ kernel.diagonal()) / pairs)

    return within(aa, u) + within(bb, v) - 2.0 * float(u @ ab @ v) / float(u.sum() * v.sum())


def nearest(a: Features, b: Features) -> NDArray[np.float64]:
    """(N,) distance of each row of ``a`` to the nearest of ``b``, over their mean norm."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0).min(axis=1)) / float(np.linalg.norm(b, axis=1).mean())
