"""Figures of a student's motion, for `fada evaluate`; it runs as in service (`rollout`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from model.motion.rollout import roll_out
from model.pipeline import StudentPipeline
from model.portrait.blendshapes import ACTION_COUNT
from model.types import FPS, SAMPLE_RATE, Floats, Guidance
from training.data.corpus import Corpus, LipGap, fit_lip_gap, grid_corpus, held_out, load_grid
from training.data.inferred import speeches
from training.data.music import played
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

_MUSIC_UNDER_DB = 10.0  # the speech it accompanies


@dataclass(frozen=True)
class HeldOut:
    """What motions are judged on; nothing of it was trained on."""

    clips: list[Utterance]  # held-out GRID clips whose words can be aligned
    real: list[Floats]  # (T, 58) what the speaker did in each
    voices: list[Utterance]  # speeches of voices that were never heard
    training: Corpus  # GRID's other clips, for what is fitted
    lip_gap: LipGap


def held_out_set(data: Path, speech: Path, clips: int, voices: int) -> HeldOut:
    """The first ``clips`` held-out clips and about ``voices`` speeches."""
    grid = load_grid(data)
    kept = held_out(len(grid.texts))
    training = grid_corpus(grid, ~kept)
    index = np.flatnonzero(kept & grid.usable.all(axis=1))[:clips]
    chosen = np.zeros_like(kept)
    chosen[index] = True
    corpus = grid_corpus(grid, chosen)
    motion = np.split(corpus.motion.numpy(), corpus.first[1:].tolist())
    align = Aligner()
    spoken, real = [], []
    for i, c in enumerate(index):
        phones = align(grid.samples[c], grid.texts[c])
        if phones is not None:
            spoken.append(Utterance(grid.samples[c], phones, corpus.reference[i].numpy()))
            real.append(motion[i])
    unheard = unheard_spoken(speech, voices)
    return HeldOut(spoken, real, unheard, training, fit_lip_gap(training))


def unheard_spoken(folder: Path, count: int) -> list[Utterance]:
    """About ``count`` speeches of two seconds or more whose voices were never learned from."""
    align, result = Aligner(), []
    neutral = np.zeros(64, np.float32)
    neutral[:ACTION_COUNT] = 0.05
    # half of them the studio voice, half the held-out speakers of speechocean762
    rows = [r for r in speeches(folder)[1] if float(r["seconds"]) >= 2]
    studio = [r for r in rows if r["file"].startswith("asterisk")]
    others = [r for r in rows if not r["file"].startswith("asterisk")]
    chosen = [s[:: max(1, 2 * len(s) // count)] for s in (studio, others)]
    for entry in [entry for part in chosen for entry in part]:
        samples, rate = soundfile.read(folder / entry["file"], dtype="float32")
        phones = align(samples, entry["transcript"]) if rate == SAMPLE_RATE else None
        # words that the aligner skipped would count as silence
        if phones is not None and loud_silence_db(samples, phones) < LOUD_SILENCE_DB:
            result.append(Utterance(samples, phones, neutral))
    return result


def run_speeches(
    pipeline: StudentPipeline,
    spoken: list[Utterance],
    first_seed: int,
    guidance: Guidance,
    steps: int,
) -> list[Floats]:
    """The motion (T, 58) of each speech, seeds counted from ``first_seed``."""
    sounds, features = [s.samples for s in spoken], [s.features for s in spoken]
    seeds = list(range(first_seed, first_seed + len(spoken)))
    return roll_out(pipeline, sounds, features, seeds, guidance, steps)


def describe(title: str, values: dict[str, float]) -> None:
    """Prints one line a figure."""
    for name, value in values.items():
        print(f"{title:>16}  {name:<24} {value:7.3f}")


def evaluate_grid(
    pipeline: StudentPipeline, tests: HeldOut, seeds: int, guidance: Guidance, steps: int
) -> None:
    """Held-out clips against what the speaker did."""
    takes = [
        run_speeches(pipeline, tests.clips, seed * len(tests.clips), guidance, steps)
        for seed in range(seeds)
    ]
    truth = np.concatenate([m[:, JAW] for m in tests.real])
    jaws = np.stack([np.concatenate([m[:, JAW] for m in take]) for take in takes])
    print(f"{'GRID held out':>16}  {len(tests.clips)} clips, {seeds} seeds, {steps}, {guidance}")
    spoken = from_first_phone(tests.clips, [len(m) for m in tests.real])
    correlations = {
        "jaw r, one sample": float(np.mean([correlation(j, truth) for j in jaws])),
        f"jaw r, mean of {seeds}": correlation(jaws.mean(0), truth),
        "jaw r from first phone": float(
            np.mean([correlation(j[spoken], truth[spoken]) for j in jaws])
        ),
        f"from first phone, mean of {seeds}": correlation(jaws.mean(0)[spoken], truth[spoken]),
    }
    describe("GRID held out", correlations | figures(takes[0], tests.clips, tests.lip_gap))
    describe("the real speaker", figures(tests.real, tests.clips, tests.lip_gap))


def evaluate_long(pipeline: StudentPipeline, spoken: list[Utterance], lip_gap: LipGap) -> None:
    """Ten minutes in one session, alternately ten seconds of speech and five of silence."""
    speech = np.concatenate([s.samples for s in spoken])
    piece, pause = 10 * SAMPLE_RATE, 5 * SAMPLE_RATE
    parts, silent = [], []
    for k in range(40):
        parts += [np.roll(speech, -k * piece)[:piece], np.zeros(pause, np.float32)]
        silent += [np.zeros(10 * FPS, bool), np.ones(5 * FPS, bool)]
    known = pipeline.metadata
    sound = np.concatenate(parts)
    motion = roll_out(pipeline, [sound], [spoken[0].features], [7], known.guidance, known.steps)[0]
    quiet = np.concatenate(silent)[: len(motion)]
    inner = quiet & np.roll(quiet, 8)
    gap = gaps_of([motion], lip_gap)[0]
    head = motion[:, ACTION_COUNT:]
    minute = 60 * FPS
    print(f"{'ten minutes':>16}  {'closed in silence':<30} {np.mean(gap[inner] < CLOSED_GAP):7.3f}")
    for name, part in (("first", head[:minute]), ("last", head[-minute:])):
        figures = f"mean {np.abs(part.mean(0)).max():.3f} std {part.std(0).mean():.4f}"
        print(f"{'ten minutes':>16}  {name + ' minute, head pose':<30} {figures}")
    print(f"{'ten minutes':>16}  {'largest |head pose|':<30} {np.abs(head).max():7.3f}")
    print(f"{'ten minutes':>16}  {'blinks a minute':<30} {blinks_per_minute([motion]):7.3f}")


def evaluate_music(pipeline: StudentPipeline, spoken: list[Utterance], lip_gap: LipGap) -> None:
    """Lips do not follow music, and under speech it does not disturb them."""
    known = pipeline.metadata
    pieces = [played(10.0, seed) for seed in range(10)]
    faces = [spoken[0].features] * len(pieces)
    motion = roll_out(pipeline, pieces, faces, list(range(10)), known.guidance, known.steps)
    shut = np.mean([(gap < CLOSED_GAP).mean() for gap in gaps_of(motion, lip_gap)])
    describe("music alone", {"closed": float(shut)})
    accompanied = []
    for seed, speech in enumerate(spoken):
        level = np.sqrt((speech.samples**2).mean()) / 0.1 * 10 ** (-_MUSIC_UNDER_DB / 20)
        music = played(len(speech.samples) / SAMPLE_RATE, seed)[: len(speech.samples)]
        accompanied.append(replace(speech, samples=speech.samples + np.float32(level) * music))
    made = run_speeches(pipeline, accompanied, 0, known.guidance, known.steps)
    describe("over music", figures(made, accompanied, lip_gap))
