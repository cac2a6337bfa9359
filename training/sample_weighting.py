"""The weight of the data against the teacher in a student's loss, sample by sample.

With d(a, b) a loss, x0* the teacher's target and x0 the data,

    w = 0.7 · q · α(t)² · exp(-(1.2 - q) · d(x0*, x0) / τ(t)) · exp(-|s - s̄|)

q         confidence of the sample (`Corpus.confidence`): 1 if tracked, less if inferred.
d / τ(t)  distance of the data from the teacher's target over its running mean at that noise level,
          as at high noise even good data is far from any estimate. At low q, unlikely data (a badly
          aligned word) is left to the teacher. At high q the teacher is more likely wrong, above
          all after a generated prefix, whose errors it has never seen.
|s - s̄|   distance of the two guidance scales from the defaults, summed. The data only belongs to
          the defaults: weighted alike at all scales, it would teach scales without effect.
α(t)²     signal power of x_t. Where noise hides the recording, x_t could come from many; regressing
          onto all of them teaches their mean, a face that hardly blinks. The teacher's steps lead
          to one of them.
0.7       keeps the guided target in the loss even where all of these are 1.

FADA's own weighting (arXiv 2412.16915) is not published in full; this formula is this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

MAX_DATA_WEIGHT = 0.7
DISTANCE_RATE = 1.2  # less the confidence: how fast the weight falls with the distance
_NOISE_LEVELS = 10


class AdaptiveSampleWeight:
    """The formula above; holds τ, the running mean of the distance at each noise level."""

    def __init__(self, at_defaults: bool = True, at_any_noise: bool = False) -> None:
        """``at_defaults``: weight by exp(-|s - s̄|); False ignores the scales. ``at_any_noise``:
        leave out α(t)²."""
        self._at_defaults, self._at_any_noise = at_defaults, at_any_noise
        self._mean_distance = torch.full((_NOISE_LEVELS,), float("nan"))

    def __call__(
        self,
        distance: Tensor,
        t: Tensor,
        *,
        signal: Tensor,
        confidence: Tensor,
        scale_distance: Tensor,
    ) -> Tensor:
        """(B,) weights of the data.

        All (B,): ``distance`` d(x0*, x0), times ``t``, ``signal`` α(t)², ``confidence`` q,
        ``scale_distance`` |s - s̄|.
        """
        level = (t * _NOISE_LEVELS).long().clamp(max=_NOISE_LEVELS - 1)
        for i in sorted(set(level.tolist())):
            now = distance[level == i].mean()
            before = self._mean_distance[i]
            self._mean_distance[i] = now if bool(before.isnan()) else torch.lerp(before, now, 0.02)
        unlikely = distance / self._mean_distance[level]
        weight = (
            MAX_DATA_WEIGHT
            * confidence
            * (1.0 if self._at_any_noise else signal)
            * torch.exp(-(DISTANCE_RATE - confidence) * unlikely)
        )
        return weight * torch.exp(-scale_distance) if self._at_defaults else weight


class SampleWeight(Protocol):
    """See `AdaptiveSampleWeight`."""

    def __call__(
        self,
        distance: Tensor,
        t: Tensor,
        *,
        signal: Tensor,
        confidence: Tensor,
        scale_distance: Tensor,
    ) -> Tensor: ...


class ConstantSampleWeight:
    """The same weight for every sample, or for every tracked one."""

    def __init__(self, weight: float, tracked_only: bool = False) -> None:
        self._weight, self._tracked_only = weight, tracked_only

    def __call__(self, distance: Tensor, t: Tensor, *, confidence: Tensor, **_: Tensor) -> Tensor:
        used = confidence == 1 if self._tracked_only else torch.ones_like(distance)
        return self._weight * used.to(distance)


# By name; all but "mixed" are ablations.
SUPERVISION: dict[str, Callable[[], SampleWeight]] = {
    "mixed": AdaptiveSampleWeight,
    "any-scale": lambda: AdaptiveSampleWeight(at_defaults=False),
    "fixed": lambda: ConstantSampleWeight(MAX_DATA_WEIGHT / 2),
    "any-noise": lambda: AdaptiveSampleWeight(at_any_noise=True),
    "tracked": lambda: ConstantSampleWeight(MAX_DATA_WEIGHT / 2, tracked_only=True),
    "teacher": lambda: ConstantSampleWeight(0.0),
    "data": lambda: ConstantSampleWeight(1.0),
}
