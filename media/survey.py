"""What a track's packets show before any of them is decoded: their length, and an odd scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from numpy.typing import NDArray

LONGEST_PAUSE_S = 60.0  # a longer jump of timestamps is taken for damage

_FLOATS = {"pcm_f32le": "<f4", "pcm_f32be": ">f4", "pcm_f64le": "<f8", "pcm_f64be": ">f8"}
_EXPONENTS = 64
_LOUD = 3  # a sound float file has hardly a sample beyond 2**3
_SHARE = 1e-3  # of the samples
_SCALES = (15, 23, 31)  # bits of the integers that were not divided


def _no_samples() -> NDArray[np.int64]:
    return np.zeros(_EXPONENTS, np.int64)


@dataclass(frozen=True)
class Survey:
    """``exponents`` counts a float track's samples below 1, 2, 4, 8 ...; other tracks have none."""

    packets: int = 0
    seconds: float = 0.0
    exponents: NDArray[np.int64] = field(default_factory=_no_samples)

    def __add__(self, other: Survey) -> Survey:
        return Survey(
            self.packets + other.packets,
            self.seconds + other.seconds,
            self.exponents + other.exponents,
        )

    @property
    def integer_bits(self) -> int:
        """Of integers that were stored as floats without being divided; 0 for samples within ±1.

        Judged by the loudest level that more than a few samples reach.
        """
        reached = np.cumsum(self.exponents[::-1])[::-1] > _SHARE * self.exponents.sum()
        loudest = int(np.flatnonzero(reached).max(initial=0))
        return 0 if loudest <= _LOUD else next((b for b in _SCALES if loudest <= b), _SCALES[-1])


def survey(packets: Iterable[Packet[AudioStream]], decoder: str, max_s: float) -> Survey:
    """Of ``packets`` for FFmpeg's ``decoder``, at most until they last longer than ``max_s``."""
    count, seconds, exponents = 0, 0.0, _no_samples()
    kind = _FLOATS.get(decoder)
    for packet in packets:
        count += bool(packet.size)  # the last is empty
        seconds += seconds_of(packet)
        if kind:
            exponents += _exponents(packet, np.dtype(kind))
        if seconds > max_s:
            break
    return Survey(count, seconds, exponents)


def seconds_of(packet: Packet[AudioStream]) -> float:
    """Its duration, as far as it is known and not absurd."""
    if not packet.duration or not packet.time_base:
        return 0.0
    return min(float(packet.duration * packet.time_base), LONGEST_PAUSE_S)


def _exponents(packet: Packet[AudioStream], kind: np.dtype[np.floating]) -> NDArray[np.int64]:
    data = memoryview(packet)
    values = np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)
    _, exponents = np.frexp(values[np.isfinite(values)])
    return np.bincount(np.clip(exponents, 0, _EXPONENTS - 1), minlength=_EXPONENTS)
