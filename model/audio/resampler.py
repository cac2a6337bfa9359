"""Sound from a client's sample rate to others, in pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from model.types import SAMPLE_RATE, Floats

# A resampler that starts this long before the samples it is needed for gives the same samples.
_SETTLE_S = 0.05
_INT16_SCALE = np.float32(32768)
_ZERO_CROSSINGS = 48  # of a decimator's filter on either side: 3 ms at 16 kHz
_CUTOFF = 0.96  # of the lower rate's half; the band between 0.91 and 1.01 falls by 80 dB
_KAISER_BETA = 7.9


class _Stream(Protocol):
    def resample_chunk(self, samples: Floats, last: bool = False) -> Floats: ...


class Decimator:
    """From ``factor`` times a rate down to it; gives each sample as soon as it is known.

    soxr works in blocks: at 48 kHz its samples come up to 37 ms late, these 3 ms.
    """

    def __init__(self, factor: int) -> None:
        self._factor, self._half = factor, _ZERO_CROSSINGS * factor
        places = np.arange(-self._half, self._half + 1) / factor
        sinc = np.sinc(_CUTOFF * places) * np.kaiser(2 * self._half + 1, _KAISER_BETA)
        self._filter = sinc / sinc.sum()
        self._pending: Floats = np.zeros(self._half, np.float32)

    def resample_chunk(self, samples: Floats, last: bool = False) -> Floats:
        """The samples that are known now; with ``last``, silence follows."""
        end = np.zeros(self._half if last else 0, np.float32)
        self._pending = np.concatenate([self._pending, samples, end])
        count = max(0, -(-(len(self._pending) - 2 * self._half) // self._factor))
        if not count:
            return np.zeros(0, np.float32)
        known = self._pending.astype(np.float64)
        rows = sliding_window_view(known, len(self._filter))[:: self._factor]
        # Unlike BLAS, the same sum wherever a piece begins.
        made = np.einsum("nt,t->n", rows, self._filter).astype(np.float32)
        self._pending = self._pending[count * self._factor :]
        return made


class Resampler:
    """From ``rate`` to each of ``targets`` at once, resumable in another process.

    soxr shows nothing of its state. But a resampler that starts later, at a sample that falls on
    one of the output's, soon gives the same: so the samples that it must be fed again are kept.
    """

    def __init__(self, rate: int, targets: Sequence[int]) -> None:
        self._rate, self._targets = rate, targets
        # Samples after which all outputs start on a sample again: targets are multiples of 16 kHz.
        self._period = rate // math.gcd(rate, SAMPLE_RATE)
        self._streams = [_stream(rate, to) for to in targets]
        self._given = [0] * len(targets)
        self._skip = [0] * len(targets)
        self._origin = 0
        self._recent: NDArray[np.int16] = np.zeros(0, np.int16)

    @property
    def has_input(self) -> bool:
        """Whether any sound went in."""
        return self._origin + len(self._recent) > 0

    def feed(self, pcm: NDArray[np.int16], *, last: bool) -> list[Floats]:
        """The samples that are ready at each target's rate, as floats of ±1."""
        samples = pcm.astype(np.float32) / _INT16_SCALE
        self._recent = np.concatenate([self._recent, pcm])
        outputs = []
        for n, stream in enumerate(self._streams):
            out = stream.resample_chunk(samples, last=last)
            surplus = min(self._skip[n], len(out))
            self._skip[n] -= surplus
            self._given[n] += len(out) - surplus
            outputs.append(out[surplus:])
        self._forget()
        return outputs

    def state(self) -> tuple[NDArray[np.int16], list[int]]:
        """The last samples, up to a tenth of a second or so, and where they lie."""
        return self._recent, [self._origin, *self._given]

    def restore(self, recent: NDArray[np.int16], places: list[int]) -> list[Floats]:
        """Become the resampler of that `state`; returns samples that are ready earlier by it."""
        self._origin, *self._given = places
        pairs = zip(self._given, self._targets, strict=True)
        self._skip = [given - self._origin * target // self._rate for given, target in pairs]
        return self.feed(recent, last=False)

    def _forget(self) -> None:
        pairs = zip(self._given, self._targets, strict=True)
        wanted = min(given * self._rate // target for given, target in pairs)
        keep = max(0, wanted - round(_SETTLE_S * self._rate)) // self._period * self._period
        if keep > self._origin:
            self._recent = self._recent[keep - self._origin :]
            self._origin = keep


def _stream(rate: int, target: int) -> _Stream:
    if rate > target and rate % target == 0:
        return Decimator(rate // target)
    return cast(_Stream, soxr.ResampleStream(rate, target, 1, dtype="float32"))
