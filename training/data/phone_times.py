"""From what a synthesiser says of its timing to ARPAbet phones that fill the sound.

Kokoro and hibari read one token a sound, stress mark, space or punctuation, and predict for each
how many units of 25 ms it lasts, so a border is known to half a unit. They sound earlier than their
counts say. Measured against forced alignment of 104 sentences: by 60 ms (median of 839 and 1,105
borders between adjoining sounds), where flite's own segment ends come out 4 to 9 ms late (80
sentences), which is the aligner's bias; the difference is taken as two units. Where a space or a
stress mark lies between two sounds, the same measurement places the border at about 0.45 or a
quarter of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.types import SAMPLE_RATE, Floats
from training.data.phones import OPENNESS, Phone

UNIT_S = 0.025
EARLY_S = 2 * UNIT_S  # what is heard comes before the counts by this much
PAD = "^"  # stands for token 0, which frames a sentence
_SPACE_SHARE, _STRESS_SHARE = 0.45, 0.25  # of what lies between two sounds, to the first
_HOP_S = 0.005
_SILENT_DB = -38.0  # below the loud parts of a sentence
_LEAST_PAUSE_S = 0.04

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
    """``samples`` (N,) at 16 kHz and the phones that fill them from start to end."""

    samples: Floats
    phones: list[Phone]


@dataclass
class _Sound:
    """A sound and what its tokens say of it, seconds; ``gap``: the tokens between the last sound
    and this one."""

    name: str
    start_s: float
    end_s: float
    gap: str


def phones_of(tokens: Sequence[str], units: Sequence[float], samples: Floats) -> list[Phone]:
    """The phones of ``samples`` (N,), 16 kHz, whose ``tokens`` last ``units`` of 25 ms each.

    Diphthongs stay whole, stress, length and glottal marks join their neighbours, a vowel and the
    /r/ that colours it are one. Punctuation becomes ``SIL`` where the sound is silent and only as
    long as it is. The phones fill the samples without gaps or overlaps.

    Raises ``ValueError`` for a token that has no name, or when no token is a sound.
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
    """Whether an /r/ after ``vowel`` belongs to it: always in "bird", in "her" but not "around"."""
    after = next((t for t in following if t not in "ˈˌː"), PAD)
    return vowel == "ER" or (vowel == "AH" and after not in VOWELS)


def _share(gap: str) -> float:
    return _STRESS_SHARE if {"ˈ", "ˌ"} & set(gap) else _SPACE_SHARE


def _quiet(samples: Floats) -> NDArray[np.bool_]:
    """(hops,) whether each 5 ms are far below the loud parts."""
    hop = int(_HOP_S * SAMPLE_RATE)
    power = (samples[: len(samples) // hop * hop].reshape(-1, hop).astype(float) ** 2).mean(1)
    level = 10 * np.log10(power + 1e-12)
    return np.asarray(level < np.quantile(level, 0.95) + _SILENT_DB)


def _longest(quiet: NDArray[np.bool_], start_s: float, end_s: float) -> tuple[float, float] | None:
    """Longest silence between two times; ``None`` when all of them are too short to be a pause."""
    first, last = round(start_s / _HOP_S), round(end_s / _HOP_S)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet[first:last], [False]])))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return None
    begin, end = runs[np.argmax(runs[:, 1] - runs[:, 0])] + first
    # silence that reaches an end of the span goes on to it, not to the nearest hop
    found = (
        start_s if begin == first else float(begin * _HOP_S),
        end_s if end >= min(last, len(quiet)) else float(end * _HOP_S),
    )
    return found if found[1] - found[0] >= _LEAST_PAUSE_S else None


def flite_phones(said: str, total_s: float) -> list[Phone]:
    """The phones of ``flite -psdur``'s "name:end name:end …", cut or held to the sound's length.

    The diphone voice (kal16) says 2 to 6 % more than it sounds; measured, that is silence missing
    at its end, no faster speech. Raises ``ValueError`` when a segment has no name here.
    """
    phones: list[Phone] = []
    for word in said.split():
        name, end = word.split(":")
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
