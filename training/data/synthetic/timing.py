"""ARPAbet phones that fill the sound, from a synthesiser's token durations.

Kokoro and hibari read one token per sound, stress mark, space or punctuation, and predict its
duration in units of 25 ms, so borders are known to half a unit. Their sound precedes the durations:
by 60 ms against forced alignment of 104 sentences (median of 839 and 1,105 borders between
adjoining sounds). The aligner is biased by 4 to 9 ms, as flite's own segment ends show (80
sentences); the difference is taken as two units. By the same measurement, a border lies at 0.45 of
a space, or at a quarter of a stress mark, between two sounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.types import SAMPLE_RATE, Floats
from training.data.phones import OPENNESS, Phone

UNIT_S = 0.025
EARLY_S = 2 * UNIT_S  # the sound precedes the durations by this much
PAD = "^"  # token 0, at both ends of a sentence
_SPACE_SHARE, _STRESS_SHARE = 0.45, 0.25  # of the tokens between two sounds, for the first one
_HOP_S = 0.005
_SILENT_DB = -38.0  # relative to the loud parts of a sentence
_MIN_PAUSE_S = 0.04

VOWELS = {
    "A": "EY", "I": "AY", "O": "OW", "Q": "OW", "W": "AW", "Y": "OY", "a": "AE", "æ": "AE",
    "ɑ": "AA", "ɒ": "AO", "ɔ": "AO", "ə": "AH", "ᵊ": "AH", "ɐ": "AH", "ʌ": "AH", "ɛ": "EH",
    "e": "EH", "ɚ": "ER", "ɜ": "ER", "i": "IY", "ɪ": "IH", "ᵻ": "IH", "ɨ": "IH", "u": "UW",
    "ʊ": "UH", "o": "OW",
}  # fmt: skip
CONSONANTS = {
    "b": "B", "d": "D", "f": "F", "h": "HH", "j": "Y", "k": "K", "l": "L", "m": "M", "n": "N",
    "p": "P", "s": "S", "t": "T", "v": "V", "w": "W", "z": "Z", "ð": "DH", "ŋ": "NG", "ɡ": "G",
    "ɹ": "R", "r": "R", "ɾ": "D", "T": "D", "ʃ": "SH", "ʒ": "ZH", "ʤ": "JH", "ʧ": "CH", "θ": "TH",
    "x": "K",
}  # fmt: skip
IPA = VOWELS | CONSONANTS
_PAUSES = frozenset(';:,.!?—…"()“”' + PAD)
_MARKS = frozenset(" ˈˌːʔ")
_FLITE = {"AX": "AH", "PAU": "SIL", "AXR": "ER", "EL": "L", "EM": "M", "EN": "N", "DX": "D"}


@dataclass(frozen=True)
class TimedSpeech:
    """``samples`` (N,) at 16 kHz, and phones that fill them without gaps."""

    samples: Floats
    phones: list[Phone]


@dataclass
class _Sound:
    """A sound by its tokens."""

    name: str
    start_s: float
    end_s: float
    gap: str  # tokens between the previous sound and this one


def phones_of(tokens: Sequence[str], units: Sequence[float], samples: Floats) -> list[Phone]:
    """The phones of ``samples`` (N,), 16 kHz, whose ``tokens`` last ``units`` of 25 ms each.

    Diphthongs stay whole; stress, length and glottal marks join their neighbours; a vowel and the
    /r/ that colours it are one phone. Punctuation becomes ``SIL`` for as long as the sound is
    silent. The phones fill the samples without gaps or overlaps.

    Raises ``ValueError`` for an unknown token, and if no token is a sound.
    """
    sounds, after = _sounds(tokens, units)
    if not sounds:
        raise ValueError(f"tokens {''.join(tokens)!r}, expected at least one sound")
    total = len(samples) / SAMPLE_RATE
    quiet = _quiet(samples)
    phones: list[Phone] = []
    at = 0.0
    for i, sound in enumerate(sounds):
        begin = 0.0 if i == 0 else sounds[i - 1].end_s
        low, high = max(at, min(begin, total)), max(at, min(sound.start_s, total))
        silence = _longest(quiet, low, high) if _PAUSES & set(sound.gap) else None
        if silence is None:
            border = low + _share(sound.gap) * (high - low) if i else 0.0
            silence = border, border
        if i:
            phones.append(Phone(sounds[i - 1].name, at, silence[0]))
        first = 0.0 if i == 0 else silence[0]
        if silence[1] > first:
            phones.append(Phone("SIL", first, silence[1]))
        at = silence[1]
    low = max(at, min(sounds[-1].end_s, total))
    silence = _longest(quiet, low, total) if after else None
    end = total if silence is None else silence[0]
    phones.append(Phone(sounds[-1].name, at, end))
    if end < total:
        phones.append(Phone("SIL", end, total))
    return [p for p in phones if p.end_s > p.start_s]


def _sounds(tokens: Sequence[str], units: Sequence[float]) -> tuple[list[_Sound], str]:
    """The sounds among ``tokens``, and the tokens after the last of them."""
    lengths = [float(u) * UNIT_S for u in units]
    ends = np.cumsum(lengths) - EARLY_S
    sounds: list[_Sound] = []
    gap = ""
    for i, token in enumerate(tokens):
        if token in _PAUSES or token in _MARKS:
            gap += token
            continue
        if token not in IPA:
            known = "".join([*IPA, *sorted(_PAUSES | _MARKS)])
            raise ValueError(f"token {token!r}, expected one of {known}")
        end = float(ends[i])
        following = tokens[i + 1 :]
        if token in "ɹr" and not gap and sounds and _coloured(sounds[-1].name, following):
            sounds[-1].name, sounds[-1].end_s = "ER", end
        else:
            sounds.append(_Sound(IPA[token], end - lengths[i], end, gap))
        gap = ""
    return sounds, gap


def _coloured(vowel: str, following: Sequence[str]) -> bool:
    """Whether an /r/ after ``vowel`` belongs to it, as in "bird" and "her" but not "around"."""
    after = next((t for t in following if t not in "ˈˌː"), PAD)
    return vowel == "ER" or (vowel == "AH" and after not in VOWELS)


def _share(gap: str) -> float:
    return _STRESS_SHARE if {"ˈ", "ˌ"} & set(gap) else _SPACE_SHARE


def _quiet(samples: Floats) -> NDArray[np.bool_]:
    """(hops,) mask of hops of 5 ms that are far below the loud parts."""
    hop = int(_HOP_S * SAMPLE_RATE)
    power = (samples[: len(samples) // hop * hop].reshape(-1, hop).astype(float) ** 2).mean(1)
    level = 10 * np.log10(power + 1e-12)
    return np.asarray(level < np.quantile(level, 0.95) + _SILENT_DB)


def _longest(quiet: NDArray[np.bool_], start_s: float, end_s: float) -> tuple[float, float] | None:
    """Longest silence between two times, ``None`` if it is shorter than a pause."""
    first, last = round(start_s / _HOP_S), round(end_s / _HOP_S)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet[first:last], [False]])))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return None
    begin, end = runs[np.argmax(runs[:, 1] - runs[:, 0])] + first
    # Extend silence that touches an end of the span from the nearest hop to that end.
    found = (
        start_s if begin == first else float(begin * _HOP_S),
        end_s if end >= min(last, len(quiet)) else float(end * _HOP_S),
    )
    return found if found[1] - found[0] >= _MIN_PAUSE_S else None


def flite_phones(segments: str, total_s: float) -> list[Phone]:
    """The phones of ``flite -psdur``'s "name:end name:end …", cut or extended to ``total_s``.

    The diphone voice (kal16) reports 2 to 6 % more than its sound lasts; measured, that is silence
    missing at its end, not faster speech. Raises ``ValueError`` for an unknown segment.
    """
    phones: list[Phone] = []
    for segment in segments.split():
        name, end = segment.split(":")
        upper = _FLITE.get(name.upper(), name.upper())
        if upper not in OPENNESS:
            raise ValueError(f"flite's segment {name!r}, expected one of {sorted(OPENNESS)}")
        start = phones[-1].end_s if phones else 0.0
        if phones and upper == "SIL" == phones[-1].name:
            start = phones.pop().start_s
        phones.append(Phone(upper, start, min(float(end), total_s)))
    last = phones[-1]
    phones[-1] = Phone(last.name, last.start_s, total_s)
    return [p for p in phones if p.end_s > p.start_s]
