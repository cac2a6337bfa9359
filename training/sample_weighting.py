"""How far a student believes the data, sample by sample, and how far its teacher.

With d(a, b) a loss, x0* where the teacher leads and x0 the data,

    w = 0.7 · q · α(t)² · exp(-(1.2 - q) · d(x0*, x0) / τ(t)) · exp(-|s - s̄|)

q is the corpus's own opinion of the sample (`Corpus.trust`: 1 tracked, less where motion was
inferred). d(x0*, x0) says how far the data lies from what the teacher, who has heard everything,
holds for right; τ(t) is its running mean at that noise level, as at high noise even good data is
far from any estimate. Where q is low, data that the teacher finds unlikely (a badly aligned word,
d ≫ τ) is left to the teacher. Where q is high it is mostly the teacher that is off, above all
after a prefix of the student's own making, whose errors it has never seen: there the data is
believed, almost whatever the teacher says. |s - s̄| is how far the two scales lie from the
defaults, summed: the data knows nothing of scales, and believed at all of them alike it would make
knobs of them that turn nothing. It speaks for the defaults. The cap of 0.7 keeps the guided target
in play even there. α(t)² is the share of x_t that is signal: where noise hides the recording, it is
one of many that x_t may come from, and whoever is taught by all of them learns their mean, a
face that hardly blinks. The teacher's walk ends at one of them.

FADA's own weighting (arXiv 2412.16915) is not public in full; this formula is this project's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DATA_SHARE = 0.7
DOUBT = 1.2  # the data's weight falls with the distance at the rate DOUBT - trust
_NOISE_LEVELS = 10


class AdaptiveSampleWeight:
    """The data's weight w; keeps τ, the running mean of the distance at each noise level."""

    def __init__(self, at_defaults: bool = True) -> None:
        """``at_defaults``: the data speaks for the default scales, else for all alike."""
        self._at_defaults = at_defaults
        self._typical = torch.full((_NOISE_LEVELS,), float("nan"))

    def __call__(
        self, distance: Tensor, t: Tensor, signal: Tensor, trust: Tensor, aside: Tensor
    ) -> Tensor:
        """``distance`` d(x0*, x0), ``t``, ``signal`` α(t)², ``trust`` and ``aside`` |s - s̄|, all
        (B,) -> the data's weight (B,)."""
        level = (t * _NOISE_LEVELS).long().clamp(max=_NOISE_LEVELS - 1)
        for i in sorted(set(level.tolist())):
            now = distance[level == i].mean()
            before = self._typical[i]
            self._typical[i] = now if bool(before.isnan()) else torch.lerp(before, now, 0.02)
        unlikely = distance / self._typical[level]
        weight = DATA_SHARE * trust * signal * torch.exp(-(DOUBT - trust) * unlikely)
        return weight * torch.exp(-aside) if self._at_defaults else weight


Weight = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # see `AdaptiveSampleWeight`


def _constant(share: float) -> Callable[[], Weight]:
    return lambda: lambda distance, t, signal, trust, aside: torch.full_like(distance, share)


# The data's weight: as above, as if it knew every scale, the same for every sample, the teacher's
# word only, the data's only.
SUPERVISION: dict[str, Callable[[], Weight]] = {
    "mixed": AdaptiveSampleWeight,
    "any-scale": lambda: AdaptiveSampleWeight(at_defaults=False),
    "fixed": _constant(DATA_SHARE / 2),
    "teacher": _constant(0.0),
    "data": _constant(1.0),
}
