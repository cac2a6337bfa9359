"""What a file's packets show before any of them is decoded: their length, and an odd scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from media.tracks import Track, seconds_of

_FLOATS = {"pcm_f32le": "<f4", "pcm_f32be": ">f4", "pcm_f64le": "<f8", "pcm_f64be": ">f8"}
_EXPONENTS = 64
_LOUD = 3  # a sound float file has hardly a sample beyond 2**3
_SHARE = 1e-3  # of the samples
_SCALES = (15, 23, 31)  # bits of the integers that were not divided


@dataclass(frozen=True)
class Survey:
    """``duration_s``: of all packets, ``None`` if they have none. ``scale`` multiplies samples."""

    packets: int
    duration_s: float | None
    scale: float = 1.0
    warnings: tuple[str, ...] = ()


def survey(tracks: Iterable[Track], max_s: float) -> Survey:
    """Count the packets of ``tracks``, at most until they last longer than ``max_s``."""
    packets, duration_s = 0, 0.0
    exponents = np.zeros(_EXPONENTS, np.int64)
    for track in tracks:
        kind = _FLOATS.get(track.codec)
        for packet in track.packets():
            packets += bool(packet.size)  # the last is empty
            duration_s += seconds_of(packet)
            if kind:
                exponents += _exponents(packet, kind)
            if duration_s > max_s:
                break
    bits = _integer_bits(exponents)
    return Survey(
        packets,
        duration_s or None,
        scale=2.0**-bits,
        warnings=(f"the float samples are integers of {bits + 1} bits; they were scaled",)
        if bits
        else (),
    )


def _exponents(packet: object, kind: str) -> NDArray[np.int64]:
    """How many samples lie below 2, 4, 8 ..., each counted once."""
    data = memoryview(packet)  # type: ignore[arg-type]
    size = np.dtype(kind).itemsize
    values = np.frombuffer(data[: len(data) // size * size], kind)
    _, exponents = np.frexp(values[np.isfinite(values)])
    return np.bincount(np.clip(exponents, 0, _EXPONENTS - 1), minlength=_EXPONENTS)


def _integer_bits(exponents: NDArray[np.int64]) -> int:
    """By the loudest level that more than a few samples reach; 0 for samples within ±1."""
    reached = np.cumsum(exponents[::-1])[::-1] > _SHARE * exponents.sum()
    loudest = int(np.flatnonzero(reached).max(initial=0))
    return 0 if loudest <= _LOUD else next((b for b in _SCALES if loudest <= b), _SCALES[-1])
