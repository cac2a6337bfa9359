"""Synthetic speech with exact phone times: what is said by whom, and the folder it is kept in.

``manifest.csv`` has a row a clip (see `COLUMNS`); beside each ``NAME.flac`` (16 kHz, mono) lies
``NAME.json``, a list of [phone, start, end] in seconds that fills the clip. ``alignment_ms`` is the
median distance of the borders to those that forced alignment of the same text finds, empty where
it finds none.

Held out from training, decided before any of this was trained on: the Kokoro voices bf_isabella
and am_michael, flite's awb, and every tenth sentence (`sentences.held_out_sentence`). Held-out
voices say only held-out sentences and nobody else says these, so ``split`` parts both.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from tqdm import tqdm

from model.types import SAMPLE_RATE, Floats
from training.data.phone_times import TimedSpeech
from training.data.phones import Phone
from training.data.sentences import held_out_sentence

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
SHARES = {"kokoro": 40.0, "flite": 40.0, "hibari": 15.0}  # of the minutes asked for
RATES = (1.0, 0.9, 1.1, 0.85, 1.0, 1.2, 0.95)  # how fast one sentence after the other is said
_LEAST_BORDERS = 5
_LOUDEST = 0.98

Row = dict[str, str]
Align = Callable[[Floats, str], list[Phone] | None]


class Synthesiser(Protocol):
    """Text to speech; ``rate`` 1 is the voice's own pace, 2 twice as fast."""

    def __call__(self, text: str, voice: str, rate: float) -> TimedSpeech: ...


@dataclass(frozen=True)
class SyntheticUtterance:
    """One sentence to be said by one voice."""

    engine: str
    voice: str
    number: int  # of the sentence in the bank
    text: str
    rate: float
    split: str  # "train" or "held_out"

    @property
    def file(self) -> str:
        """Where it is kept, relative to the corpus."""
        return f"{self.engine}/{self.voice}/{self.number:04d}.flac"


def split_of(voice: str) -> str:
    """Which side of the hold-out a voice is on."""
    return "held_out" if voice in HELD_OUT_VOICES else "train"


def plan(engine: str, voices: tuple[str, ...], sentences: list[str]) -> list[SyntheticUtterance]:
    """All takes of an engine; any beginning of them has all voices about equally often.

    Each voice walks through its side of the bank from another place, so that sentences are spoken
    by several voices, but not by one after the other.
    """
    pools = {
        split: [i for i in range(len(sentences)) if held_out_sentence(i) == (split == "held_out")]
        for split in ("train", "held_out")
    }
    takes = []
    for turn in range(max(len(p) for p in pools.values())):
        for v, voice in enumerate(voices):
            pool = pools[split_of(voice)]
            if turn < len(pool):
                number = pool[(turn + v * len(pool) // len(voices)) % len(pool)]
                rate = RATES[(turn + v) % len(RATES)]
                takes.append(
                    SyntheticUtterance(
                        engine, voice, number, sentences[number], rate, split_of(voice)
                    )
                )
    return takes


def read_rows(folder: Path) -> list[Row]:
    """The manifest's rows so far; one that was cut off while being written, or whose sound is
    gone, does not count."""
    path = folder / "manifest.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [r for r in rows if set(r) == set(COLUMNS) and None not in r.values()]
    return [r for r in whole if r["seconds"] and (folder / r["file"]).is_file()]


def read_phones(folder: Path, file: str) -> list[Phone]:
    """The phones of a clip of the corpus."""
    rows = json.loads((folder / file).with_suffix(".json").read_text())
    return [Phone(str(name), float(start), float(end)) for name, start, end in rows]


def border_distance_ms(ours: list[Phone], theirs: list[Phone] | None) -> float | None:
    """Median distance of the starts of phones that both have in the same order, milliseconds;
    ``None`` when there is nothing to compare with."""
    if theirs is None:
        return None
    a = [p for p in ours if p.name != "SIL"]
    b = [p for p in theirs if p.name != "SIL"]
    matcher = difflib.SequenceMatcher(None, [p.name for p in a], [p.name for p in b], False)
    apart = [
        abs(a[m.a + i].start_s - b[m.b + i].start_s)
        for m in matcher.get_matching_blocks()
        for i in range(m.size)
    ]
    return float(np.median(apart)) * 1000 if len(apart) >= _LEAST_BORDERS else None


def build(
    folder: Path,
    takes: Mapping[str, list[SyntheticUtterance]],
    synthesisers: Mapping[str, Synthesiser],
    align: Align,
    minutes: float,
) -> list[Row]:
    """Says ``takes`` until the corpus in ``folder`` holds ``minutes``; goes on where it stopped.

    Raises ``ValueError`` when ``minutes`` is not positive.
    """
    if minutes <= 0:
        raise ValueError(f"minutes {minutes}, expected more than 0")
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(folder)
    _rewrite(folder, rows)
    done = {r["file"] for r in rows}
    made = {engine: _seconds(rows, engine) for engine in takes}
    left = {engine: iter([t for t in ts if t.file not in done]) for engine, ts in takes.items()}
    with tqdm(
        total=minutes * 60, initial=sum(made.values()), unit="s", unit_scale=True, desc="speech"
    ) as bar:
        for take in _in_turn(left, made, minutes * 60):
            spoken = synthesisers[take.engine](take.text, take.voice, take.rate)
            row = _keep(folder, take, spoken, align)
            rows.append(row)
            made[take.engine] += float(row["seconds"])
            bar.update(float(row["seconds"]))
    return rows


def _in_turn(
    left: Mapping[str, Iterator[SyntheticUtterance]], made: Mapping[str, float], seconds: float
) -> Iterator[SyntheticUtterance]:
    """The next take of whichever engine is furthest behind its share, until there is enough."""
    open_engines = set(left)
    while open_engines and sum(made.values()) < seconds:
        engine = min(sorted(open_engines), key=lambda e: made[e] / SHARES[e])
        take = next(left[engine], None)
        if take is None:
            open_engines.remove(engine)
        else:
            yield take


def _seconds(rows: list[Row], engine: str) -> float:
    return sum(float(r["seconds"]) for r in rows if r["engine"] == engine)


def _keep(folder: Path, take: SyntheticUtterance, spoken: TimedSpeech, align: Align) -> Row:
    """Writes a clip, its phones, and last the manifest's row, which makes it count."""
    samples = spoken.samples * min(1.0, _LOUDEST / max(float(np.abs(spoken.samples).max()), 1e-9))
    distance = border_distance_ms(spoken.phones, align(samples, take.text))
    path = folder / take.file
    path.parent.mkdir(parents=True, exist_ok=True)
    phones = [[p[0], round(p[1], 4), round(p[2], 4)] for p in map(astuple, spoken.phones)]
    path.with_suffix(".json").write_text(json.dumps(phones))
    soundfile.write(path, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    row = {
        "file": take.file, "voice": take.voice, "engine": take.engine, "split": take.split,
        "text": take.text, "seconds": f"{len(samples) / SAMPLE_RATE:.3f}",
        "licence": LICENCES[take.engine],
        "alignment_ms": "" if distance is None else f"{distance:.1f}",
    }  # fmt: skip
    with (folder / "manifest.csv").open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)
    return row


def _rewrite(folder: Path, rows: list[Row]) -> None:
    """The manifest with just ``rows``, replaced in one go."""
    fresh = folder / "manifest.csv.part"
    with fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(folder / "manifest.csv")
