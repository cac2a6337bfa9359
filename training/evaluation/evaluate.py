"""Evaluate a motion student on held-out data, for ``fada evaluate``.

Motion is generated as in service (`model.motion.rollout`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from model.motion.rollout import roll_out
from model.pipeline import StudentPipeline
from model.portrait.blendshapes import ACTION_COUNT
from model.types import FPS, SAMPLE_RATE, Floats, Guidance
from training.data.corpus import Corpus, LipGap, fit_lip_gap, grid_corpus, held_out, load_grid
from training.data.inferred import split_speeches
from training.data.music import synthesise_music
from training.data.phones import LOUD_SILENCE_DB, Aligner, loud_silence_db
from training.evaluation.metrics import (
    JAW,
    Utterance,
    blinks_per_minute,
    correlation,
    figures,
    from_first_phone,
    gaps_of,
)
from training.losses import CLOSED_GAP

PARTS = ("choose", "report", "apart")
_FIFTHS = ("choose", "choose", "report", "report", "apart")
_SPEECH_OVER_MUSIC_DB = 10.0


@dataclass(frozen=True)
class HeldOut:
    """Data to evaluate on; only ``training`` was trained on."""

    clips: list[Utterance]  # held-out GRID clips whose text can be aligned
    real: list[Floats]  # (T, 58) the speaker's motion in each
    voices: list[Utterance]  # of unseen voices
    training: Corpus  # GRID's other clips, for features and baselines
    lip_gap: LipGap


def held_out_set(
    data: Path, speech: Path, *, clips: int, voices: int, part: str | None = None
) -> HeldOut:
    """The first ``clips`` held-out clips of ``data`` and about ``voices`` utterances of ``speech``.

    Clips whose text cannot be aligned are left out. ``part``: only one of `PARTS`, so that what is
    chosen on one is reported on another.
    """
    grid = load_grid(data)
    kept = held_out(len(grid.texts))
    training = grid_corpus(grid, ~kept)
    index = np.flatnonzero(kept & grid.usable.all(axis=1))
    index = np.array([c for c in index if in_part(f"grid {c}", part)])[:clips]
    chosen = np.zeros_like(kept)
    chosen[index] = True
    corpus = grid_corpus(grid, chosen)
    motion = np.split(corpus.motion.numpy(), corpus.first[1:].tolist())
    align = Aligner()
    utterances, real = [], []
    for i, c in enumerate(index):
        phones = align(grid.samples[c], grid.texts[c])
        if phones is not None:
            utterances.append(Utterance(grid.samples[c], phones, corpus.reference[i].numpy()))
            real.append(motion[i])
    return HeldOut(
        clips=utterances,
        real=real,
        voices=unseen_utterances(speech, voices, part),
        training=training,
        lip_gap=fit_lip_gap(training),
    )


def in_part(name: str, part: str | None) -> bool:
    """Whether the recording ``name`` is in ``part``, one of `PARTS`; always, if None."""
    place = zlib.crc32(name.encode()) % len(_FIFTHS)
    return part is None or _FIFTHS[place] == part


def unseen_utterances(folder: Path, count: int, part: str | None = None) -> list[Utterance]:
    """About ``count`` utterances of two seconds or more in voices kept from training."""
    align, result = Aligner(), []
    neutral = np.zeros(64, np.float32)
    neutral[:ACTION_COUNT] = 0.05
    # Half from the studio voice, half from the held-out speakers of speechocean762.
    rows = [
        r
        for r in split_speeches(folder)[1]
        if float(r["seconds"]) >= 2 and in_part(r["file"], part)
    ]
    studio = [r for r in rows if r["file"].startswith("asterisk")]
    others = [r for r in rows if not r["file"].startswith("asterisk")]
    chosen = [s[:: max(1, 2 * len(s) // count)] for s in (studio, others)]
    for entry in [entry for part in chosen for entry in part]:
        samples, rate = soundfile.read(folder / entry["file"], dtype="float32")
        phones = align(samples, entry["transcript"]) if rate == SAMPLE_RATE else None
        # Words that the aligner skipped would count as silence.
        if phones is not None and loud_silence_db(samples, phones) < LOUD_SILENCE_DB:
            result.append(Utterance(samples, phones, neutral))
    return result


def generate(
    pipeline: StudentPipeline,
    utterances: list[Utterance],
    first_seed: int,
    *,
    guidance: Guidance,
    steps: int,
) -> list[Floats]:
    """The motion (T, 58) of each utterance, with seeds counted from ``first_seed``."""
    sounds, features = [u.samples for u in utterances], [u.features for u in utterances]
    seeds = list(range(first_seed, first_seed + len(utterances)))
    return roll_out(pipeline, sounds, features, seeds=seeds, guidance=guidance, steps=steps)


def describe(title: str, values: dict[str, float]) -> None:
    """Print a line per figure."""
    for name, value in values.items():
        print(f"{title:>16}  {name:<24} {value:7.3f}")


def evaluate_grid(
    pipeline: StudentPipeline, tests: HeldOut, seeds: int, *, guidance: Guidance, steps: int
) -> None:
    """Print the figures of held-out clips and of the speaker's own motion in them."""
    count = len(tests.clips)
    by_seed = [
        generate(pipeline, tests.clips, seed * count, guidance=guidance, steps=steps)
        for seed in range(seeds)
    ]
    truth = np.concatenate([m[:, JAW] for m in tests.real])
    jaws = np.stack([np.concatenate([m[:, JAW] for m in made]) for made in by_seed])
    print(f"{'GRID held out':>16}  {count} clips, {seeds} seeds, {steps}, {guidance}")
    mask = from_first_phone(tests.clips, [len(m) for m in tests.real])
    correlations = {
        "jaw r, one sample": float(np.mean([correlation(j, truth) for j in jaws])),
        f"jaw r, mean of {seeds}": correlation(jaws.mean(0), truth),
        "jaw r from first phone": float(np.mean([correlation(j[mask], truth[mask]) for j in jaws])),
        f"from first phone, mean of {seeds}": correlation(jaws.mean(0)[mask], truth[mask]),
    }
    describe("GRID held out", correlations | figures(by_seed[0], tests.clips, tests.lip_gap))
    describe("the real speaker", figures(tests.real, tests.clips, tests.lip_gap))


def evaluate_long(pipeline: StudentPipeline, utterances: list[Utterance], lip_gap: LipGap) -> None:
    """Print the figures of a session of ten minutes: 10 s of speech and 5 s of silence in turn."""
    speech = np.concatenate([u.samples for u in utterances])
    piece, pause = 10 * SAMPLE_RATE, 5 * SAMPLE_RATE
    parts, silent = [], []
    for k in range(40):
        parts += [np.roll(speech, -k * piece)[:piece], np.zeros(pause, np.float32)]
        silent += [np.zeros(10 * FPS, bool), np.ones(5 * FPS, bool)]
    known = pipeline.metadata
    sound = np.concatenate(parts)
    face = utterances[0].features
    motion = roll_out(
        pipeline, [sound], [face], seeds=[7], guidance=known.guidance, steps=known.steps
    )[0]
    quiet = np.concatenate(silent)[: len(motion)]
    inner = quiet & np.roll(quiet, 8)
    gap = gaps_of([motion], lip_gap)[0]
    head = motion[:, ACTION_COUNT:]
    minute = 60 * FPS
    print(f"{'ten minutes':>16}  {'closed in silence':<30} {np.mean(gap[inner] < CLOSED_GAP):7.3f}")
    for name, part in (("first", head[:minute]), ("last", head[-minute:])):
        text = f"mean {np.abs(part.mean(0)).max():.3f} std {part.std(0).mean():.4f}"
        print(f"{'ten minutes':>16}  {name + ' minute, head pose':<30} {text}")
    print(f"{'ten minutes':>16}  {'largest |head pose|':<30} {np.abs(head).max():7.3f}")
    print(f"{'ten minutes':>16}  {'blinks a minute':<30} {blinks_per_minute([motion]):7.3f}")


def evaluate_music(pipeline: StudentPipeline, utterances: list[Utterance], lip_gap: LipGap) -> None:
    """Print how often lips stay closed in music alone, and the figures of speech over music."""
    known = pipeline.metadata
    pieces = [synthesise_music(10.0, seed) for seed in range(10)]
    faces = [utterances[0].features] * len(pieces)
    motion = roll_out(
        pipeline, pieces, faces, seeds=list(range(10)), guidance=known.guidance, steps=known.steps
    )
    shut = np.mean([(gap < CLOSED_GAP).mean() for gap in gaps_of(motion, lip_gap)])
    describe("music alone", {"closed": float(shut)})
    accompanied = []
    for seed, speech in enumerate(utterances):
        level = np.sqrt((speech.samples**2).mean()) / 0.1 * 10 ** (-_SPEECH_OVER_MUSIC_DB / 20)
        music = synthesise_music(len(speech.samples) / SAMPLE_RATE, seed)[: len(speech.samples)]
        accompanied.append(replace(speech, samples=speech.samples + np.float32(level) * music))
    made = generate(pipeline, accompanied, 0, guidance=known.guidance, steps=known.steps)
    describe("over music", figures(made, accompanied, lip_gap))
