"""Phones: forced alignment, and what a mouth does for a phone.

They serve to evaluate mouths on voices without tracking, and to infer mouths for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder

from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats

_HOP_S = 0.01  # the recogniser's frame
_MARGIN_S = 0.2  # at both ends of a silence, where its neighbours may still sound
LOUD_SILENCE_DB = -10.0  # an alignment with a louder silence is rejected

BILABIAL = frozenset({"P", "B", "M"})
OPEN_VOWELS = frozenset({"AA", "AE", "AH", "AY", "AW", "EH", "EY", "AO", "OW"})

# Jaw heights of phones from textbooks, from closed lips (0) to /aa/ (1); for evaluation only.
OPENNESS: dict[str, float] = {
    "SIL": 0.0, "P": 0.0, "B": 0.0, "M": 0.0, "F": 0.1, "V": 0.1,
    "AA": 1.0, "AE": 0.95, "AH": 0.7, "AO": 0.75, "AW": 0.95, "AY": 0.95, "EH": 0.75, "EY": 0.7,
    "ER": 0.4, "IH": 0.45, "IY": 0.4, "OW": 0.6, "OY": 0.65, "UH": 0.4, "UW": 0.25,
    "W": 0.15, "R": 0.3, "L": 0.45, "Y": 0.35, "HH": 0.5, "N": 0.35, "NG": 0.45, "D": 0.3,
    "T": 0.3, "K": 0.45, "G": 0.45, "S": 0.2, "Z": 0.2, "SH": 0.2, "ZH": 0.2, "CH": 0.2, "JH": 0.2,
    "TH": 0.3, "DH": 0.3,
}  # fmt: skip

# Phones that look alike share a viseme. GRID's vocabulary lacks some (HH, NG, SH, ZH, DH, OY, UH,
# ER); each shares its viseme with one that GRID has.
VISEMES: tuple[frozenset[str], ...] = (
    frozenset({"SIL"}),
    frozenset({"P", "B", "M"}),
    frozenset({"F", "V"}),
    frozenset({"W"}),
    frozenset({"R", "ER"}),
    frozenset({"L"}),
    frozenset({"T", "D", "N"}),
    frozenset({"S", "Z"}),
    frozenset({"CH", "JH", "SH", "ZH"}),
    frozenset({"TH", "DH"}),
    frozenset({"K", "G", "NG", "HH"}),
    frozenset({"Y", "IY"}),
    frozenset({"IH"}),
    frozenset({"EH", "EY"}),
    frozenset({"AE"}),
    frozenset({"AH"}),
    frozenset({"AA", "AY"}),
    frozenset({"AW"}),
    frozenset({"AO", "OW", "OY"}),
    frozenset({"UW", "UH"}),
)
_VISEME_OF = {phone: i for i, phones in enumerate(VISEMES) for phone in phones}


@dataclass(frozen=True)
class Phone:
    """One phone; ``name`` is ARPAbet without stress, or ``SIL``."""

    name: str
    start_s: float
    end_s: float


class Aligner:
    """Aligns English speech with its text by pocketsphinx."""

    def __init__(self) -> None:
        self._decoder = Decoder(samprate=SAMPLE_RATE, lm=None, loglevel="FATAL")

    def __call__(self, samples: Floats, text: str) -> list[Phone] | None:
        """The phones of ``samples`` (N,), 16 kHz, in order.

        ``None`` if the text does not fit the sound or holds digits or a word that the dictionary
        lacks.
        """
        words = re.sub(r"[^a-z' ]+", " ", text.lower().replace("-", " ")).split()
        if (
            re.search(r"\d", text)
            or not words
            or any(self._decoder.lookup_word(word) is None for word in words)
        ):
            return None
        raw = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.set_align_text(" ".join(words))
        try:
            self._decode(raw)
            self._decoder.set_alignment()
            self._decode(raw)
            alignment = self._decoder.get_alignment()
        except RuntimeError:  # no path reached the end
            return None
        if alignment is None:
            return None
        return [
            Phone(self._name(p.name), p.start * _HOP_S, (p.start + p.duration) * _HOP_S)
            for p in alignment.phones()
        ]

    def _decode(self, raw: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(raw, full_utt=True)
        self._decoder.end_utt()

    @staticmethod
    def _name(name: str) -> str:
        return name if name in OPENNESS else "SIL"


def loud_silence_db(samples: Floats, phones: list[Phone]) -> float:
    """Loudest frame in aligned silence against the loudest speech, in dB; -inf without silence.

    Near 0 dB the alignment has skipped words.
    """
    frames = len(samples) // SAMPLES_PER_FRAME
    power = (samples[: frames * SAMPLES_PER_FRAME].reshape(frames, -1) ** 2).mean(1) + 1e-12
    silent = np.zeros(frames, bool)
    for p in phones:
        if p.name == "SIL":
            start, end = (round(s * FPS) for s in (p.start_s + _MARGIN_S, p.end_s - _MARGIN_S))
            silent[start : max(0, end)] = True
    if not silent.any():
        return -np.inf
    return float(10 * np.log10(power[silent].max() / np.quantile(power, 0.95)))


def _overlap(phones: list[Phone], frames: int) -> NDArray[np.float64]:
    """(frames, phones) share of each phone in each video frame."""
    starts = np.arange(frames)[:, None] / FPS
    begin = np.array([p.start_s for p in phones])
    end = np.array([p.end_s for p in phones])
    shared = np.minimum(starts + 1 / FPS, end) - np.maximum(starts, begin)
    return np.asarray(np.maximum(shared, 0.0) * FPS)


def openness(phones: list[Phone], frames: int) -> Floats:
    """(frames,) expected mouth opening by `OPENNESS`."""
    values = np.array([OPENNESS[p.name] for p in phones])
    return np.asarray(_overlap(phones, frames) @ values, np.float32)


def visemes(phones: list[Phone], frames: int) -> Floats:
    """(frames, classes) share of each viseme in each frame."""
    table = np.zeros((len(phones), len(VISEMES)))
    classes = np.array([_VISEME_OF[p.name] for p in phones], np.int64)
    table[np.arange(len(phones)), classes] = 1.0
    return np.asarray(_overlap(phones, frames) @ table, np.float32)


def frames_of(phone: Phone, frames: int) -> range:
    """The video frames that ``phone`` overlaps."""
    first = int(phone.start_s * FPS)
    return range(min(first, frames), min(frames, max(first + 1, int(np.ceil(phone.end_s * FPS)))))
