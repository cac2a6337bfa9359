"""How far a sample of the corpus is to be believed: one score from 0 to 1, stored beside the run.

    tracked motion    1: clips in which the tracker lost the face are left out before
    synthetic speech  INFERRED / (1 + (a / 40 ms)²): a is how far the phones' borders lie, in the
                      median, from those that forced alignment finds; 30 ms where it finds none
    recorded speech   INFERRED · min(1, -l / 25 dB): l is how loud the loudest moment is in which
                      nobody is said to speak (`phones.loud_silence_db`)

Mouths of the last two are inferred from phones, which is worth INFERRED at best.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

TRACKED = 1.0
INFERRED = 0.6
_BORDER_MS = 40.0  # a frame of video
_UNKNOWN_MS = 30.0
_QUIET_DB = 25.0


def synthetic_quality(alignment_ms: float | None) -> float:
    """Of synthetic speech whose phones and forced alignment are ``alignment_ms`` apart."""
    apart = _UNKNOWN_MS if alignment_ms is None else alignment_ms
    return INFERRED / (1 + (apart / _BORDER_MS) ** 2)


def recorded_quality(loud_silence_db: float) -> float:
    """Of a recording with its loudest silence at ``loud_silence_db``, -inf where none is."""
    return INFERRED * min(1.0, max(0.0, -loud_silence_db / _QUIET_DB))


@dataclass(frozen=True)
class Quality:
    """One sample's line."""

    name: str
    source: str  # tracked, recorded or synthetic
    seconds: float
    quality: float


def write_qualities(path: Path, rows: Iterable[Quality]) -> None:
    """``path`` (.csv), a line a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(Quality))
        for name, source, seconds, quality in map(astuple, rows):
            writer.writerow((name, source, f"{seconds:.2f}", f"{quality:.3f}"))
