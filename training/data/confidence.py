"""Confidence in a sample of the corpus, from 0 to 1, written beside a training run.

    tracked motion    1; clips in which the tracker lost the face are left out
    synthetic speech  INFERRED / (1 + (a / 40 ms)²), where a is the median distance of phone borders
                      from those of forced alignment; 30 ms if it fails
    recorded speech   INFERRED · min(1, -l / 25 dB), where l is the loudest aligned silence
                      (`loud_silence_db`)

The mouths of the last two are inferred from phones, so their confidence is at most INFERRED.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

TRACKED = 1.0
INFERRED = 0.6
_BORDER_MS = 40.0  # one video frame
_UNKNOWN_MS = 30.0
_QUIET_DB = 25.0


def synthetic_confidence(alignment_ms: float | None) -> float:
    """Of synthetic speech ``alignment_ms`` from its forced alignment; None if unknown."""
    apart = _UNKNOWN_MS if alignment_ms is None else alignment_ms
    return INFERRED / (1 + (apart / _BORDER_MS) ** 2)


def recorded_confidence(loud_silence_db: float) -> float:
    """Of a recording with its loudest silence at ``loud_silence_db``, -inf if there is none."""
    return INFERRED * min(1.0, max(0.0, -loud_silence_db / _QUIET_DB))


@dataclass(frozen=True)
class SampleConfidence:
    """A row of the file."""

    name: str
    source: str  # tracked, recorded or synthetic
    seconds: float
    confidence: float


def write_confidences(path: Path, rows: Iterable[SampleConfidence]) -> None:
    """Write ``path`` (.csv), with a line per sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(f.name for f in fields(SampleConfidence))
        for name, source, seconds, confidence in map(astuple, rows):
            writer.writerow((name, source, f"{seconds:.2f}", f"{confidence:.3f}"))
