"""A corpus of synthetic speech with phone times: its plan and its folder.

``manifest.csv`` has a row per clip (`COLUMNS`). Beside each ``NAME.flac`` (16 kHz, mono) lies
``NAME.json``, a list of [phone, start, end] in seconds that fills the clip. ``alignment_ms`` is the
median distance of its borders from those of forced alignment, empty if that fails.

Held out before any training: the Kokoro voices bf_isabella and am_michael, flite's awb, and every
tenth sentence (`held_out_sentence`). Only held-out voices speak held-out sentences, and no others,
so ``split`` separates both.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from tqdm import tqdm

from model.types import SAMPLE_RATE, Floats
from training.data.phones import Phone
from training.data.synthetic.sentences import held_out_sentence
from training.data.synthetic.timing import TimedSpeech

COLUMNS = (
    "file", "voice", "engine", "split", "text", "seconds", "licence", "alignment_ms"
)  # fmt: skip
HELD_OUT_VOICES = frozenset({"bf_isabella", "am_michael", "awb"})
FLITE_VOICES = ("slt", "rms", "kal16", "awb")
HIBARI_VOICES = ("heart",)
LICENCES = {
    "kokoro": "Kokoro-82M, Apache-2.0",
    "hibari": "hibari-tts, Apache-2.0",
    "flite": "CMU Flite voices, BSD-like",
}
SHARES = {"kokoro": 40.0, "flite": 40.0, "hibari": 15.0}  # of the minutes
RATES = (1.0, 0.9, 1.1, 0.85, 1.0, 1.2, 0.95)  # speech rates, for sentences in turn
_MIN_BORDERS = 5
_MAX_PEAK = 0.98

Row = dict[str, str]
Align = Callable[[Floats, str], list[Phone] | None]


class Synthesiser(Protocol):
    """Text to speech; ``rate`` 1 is the voice's own, 2 twice as fast."""

    def __call__(self, text: str, voice: str, rate: float) -> TimedSpeech: ...


@dataclass(frozen=True)
class SyntheticUtterance:
    """One sentence for one voice."""

    engine: str
    voice: str
    number: int  # index of the sentence in the bank
    text: str
    rate: float
    split: str  # "train" or "held_out"

    @property
    def file(self) -> str:
        """Its path in the corpus."""
        return f"{self.engine}/{self.voice}/{self.number:04d}.flac"


def split_of(voice: str) -> str:
    """The split of a voice: "train" or "held_out"."""
    return "held_out" if voice in HELD_OUT_VOICES else "train"


def plan(engine: str, voices: tuple[str, ...], sentences: list[str]) -> list[SyntheticUtterance]:
    """All utterances of an engine, in an order that takes voices in turn.

    Each voice starts at another place of its part of the bank, so that a sentence is spoken by
    several voices, but not in succession.
    """
    pools = {
        split: [i for i in range(len(sentences)) if held_out_sentence(i) == (split == "held_out")]
        for split in ("train", "held_out")
    }
    utterances = []
    for turn in range(max(len(p) for p in pools.values())):
        for v, voice in enumerate(voices):
            pool = pools[split_of(voice)]
            if turn < len(pool):
                number = pool[(turn + v * len(pool) // len(voices)) % len(pool)]
                rate = RATES[(turn + v) % len(RATES)]
                utterances.append(
                    SyntheticUtterance(
                        engine=engine,
                        voice=voice,
                        number=number,
                        text=sentences[number],
                        rate=rate,
                        split=split_of(voice),
                    )
                )
    return utterances


def read_rows(folder: Path) -> list[Row]:
    """The manifest's rows, except incomplete ones and those whose sound is missing."""
    path = folder / "manifest.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [r for r in rows if set(r) == set(COLUMNS) and None not in r.values()]
    return [r for r in whole if r["seconds"] and (folder / r["file"]).is_file()]


def read_phones(folder: Path, file: str) -> list[Phone]:
    """The phones of clip ``file`` of the corpus in ``folder``."""
    rows = json.loads((folder / file).with_suffix(".json").read_text())
    return [Phone(str(name), float(start), float(end)) for name, start, end in rows]


def border_distance_ms(phones: list[Phone], aligned: list[Phone] | None) -> float | None:
    """Median distance in ms of the starts of phones that both lists have in the same order.

    ``None`` if there are too few of them.
    """
    if aligned is None:
        return None
    a = [p for p in phones if p.name != "SIL"]
    b = [p for p in aligned if p.name != "SIL"]
    matcher = difflib.SequenceMatcher(None, [p.name for p in a], [p.name for p in b], False)
    distances = [
        abs(a[m.a + i].start_s - b[m.b + i].start_s)
        for m in matcher.get_matching_blocks()
        for i in range(m.size)
    ]
    return float(np.median(distances)) * 1000 if len(distances) >= _MIN_BORDERS else None


def build(
    folder: Path,
    utterances: Mapping[str, list[SyntheticUtterance]],
    synthesisers: Mapping[str, Synthesiser],
    *,
    align: Align,
    minutes: float,
) -> list[Row]:
    """Synthesise ``utterances``, by engine, until the corpus in ``folder`` holds ``minutes``.

    Continues where it stopped. Returns the manifest's rows. Raises ``ValueError`` unless
    ``minutes`` is positive.
    """
    if minutes <= 0:
        raise ValueError(f"minutes {minutes}, expected more than 0")
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(folder)
    _rewrite(folder, rows)
    done = {r["file"] for r in rows}
    made = {engine: _seconds(rows, engine) for engine in utterances}
    left = {e: iter([u for u in us if u.file not in done]) for e, us in utterances.items()}
    with tqdm(
        total=minutes * 60, initial=sum(made.values()), unit="s", unit_scale=True, desc="speech"
    ) as bar:
        for utterance in _in_turn(left, made, minutes * 60):
            synthesise = synthesisers[utterance.engine]
            speech = synthesise(utterance.text, utterance.voice, utterance.rate)
            row = _write_clip(folder, utterance, speech, align=align)
            rows.append(row)
            made[utterance.engine] += float(row["seconds"])
            bar.update(float(row["seconds"]))
    return rows


def _in_turn(
    left: Mapping[str, Iterator[SyntheticUtterance]], made: Mapping[str, float], seconds: float
) -> Iterator[SyntheticUtterance]:
    """The next utterance of the engine furthest behind its share, until there is enough."""
    open_engines = set(left)
    while open_engines and sum(made.values()) < seconds:
        engine = min(sorted(open_engines), key=lambda e: made[e] / SHARES[e])
        utterance = next(left[engine], None)
        if utterance is None:
            open_engines.remove(engine)
        else:
            yield utterance


def _seconds(rows: list[Row], engine: str) -> float:
    return sum(float(r["seconds"]) for r in rows if r["engine"] == engine)


def _write_clip(
    folder: Path, utterance: SyntheticUtterance, speech: TimedSpeech, *, align: Align
) -> Row:
    """Write a clip and its phones, and last the manifest's row, which makes it count."""
    peak = max(float(np.abs(speech.samples).max()), 1e-9)
    samples = speech.samples * min(1.0, _MAX_PEAK / peak)
    distance = border_distance_ms(speech.phones, align(samples, utterance.text))
    path = folder / utterance.file
    path.parent.mkdir(parents=True, exist_ok=True)
    phones = [[p.name, round(p.start_s, 4), round(p.end_s, 4)] for p in speech.phones]
    path.with_suffix(".json").write_text(json.dumps(phones))
    soundfile.write(path, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    row = {
        "file": utterance.file, "voice": utterance.voice, "engine": utterance.engine,
        "split": utterance.split, "text": utterance.text,
        "seconds": f"{len(samples) / SAMPLE_RATE:.3f}", "licence": LICENCES[utterance.engine],
        "alignment_ms": "" if distance is None else f"{distance:.1f}",
    }  # fmt: skip
    with (folder / "manifest.csv").open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)
    return row


def _rewrite(folder: Path, rows: list[Row]) -> None:
    """Replace the manifest by one with ``rows``, atomically."""
    fresh = folder / "manifest.csv.part"
    with fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(folder / "manifest.csv")
