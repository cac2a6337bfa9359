"""Is the motion good? ``python -m model.training.evaluation --data GRID --speech SPEECH``.

Knows: what real mouths do and how it is measured. Does not know: how the student was trained.
Prints one line a figure, for held-out GRID clips, for voices that were never heard, and for ten
minutes of speech and silence in one session. Everything runs as in service (`rollout`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from model.audio.windows import HOP
from model.conditioning import FPS, SAMPLE_RATE, Floats, Guidance
from model.motion.actions import ACTION_COUNT, ACTIONS, ROTATION
from model.motion.weights import load_weights
from model.pipeline import StudentPipeline
from model.students import WEIGHTS, motion_pipeline
from model.training.corpus import (
    Corpus,
    Grid,
    LipGap,
    fit_lip_gap,
    grid_corpus,
    held_out,
    load_grid,
)
from model.training.inferred import speeches
from model.training.losses import CLOSED_GAP
from model.training.phones import (
    BILABIAL,
    OPEN_VOWELS,
    Aligner,
    Phone,
    frames_of,
    openness,
)
from model.training.rollout import MotionOnly, roll_out

JAW = ACTIONS.index("jawOpen")
BLINK = ACTIONS.index("eyeBlinkLeft")
OPEN_GAP = 0.05  # of the eye-corner distance: above it a mouth is visibly open
_BLINK_SHUT, _BLINK_OPEN = 0.45, 0.25
_SETTLE_S = 0.2  # silence counts from here on: lips take this long to come to rest


@dataclass(frozen=True)
class Spoken:
    """One speech to judge a mouth by."""

    samples: Floats
    phones: list[Phone]
    features: Floats


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's r of two series."""
    return float(np.corrcoef(a, b)[0, 1])


def closed_share(gaps: list[Floats], phones: list[list[Phone]]) -> float:
    """Share of /p b m/ during which the lips meet at least once."""
    met = [
        gap[frames].min() < CLOSED_GAP
        for gap, spoken in zip(gaps, phones, strict=True)
        for p in spoken
        if p.name in BILABIAL and len(frames := list(frames_of(p, len(gap))))
    ]
    return float(np.mean(met))


def open_share(gaps: list[Floats], phones: list[list[Phone]]) -> float:
    """Share of open vowels of at least 60 ms during which the mouth is visibly open."""
    opened = [
        gap[frames].max() > OPEN_GAP
        for gap, spoken in zip(gaps, phones, strict=True)
        for p in spoken
        if p.name in OPEN_VOWELS
        and p.end_s - p.start_s >= 0.06
        and len(frames := list(frames_of(p, len(gap))))
    ]
    return float(np.mean(opened))


def silence_share(gaps: list[Floats], phones: list[list[Phone]]) -> float:
    """Share of silent frames, from 0.2 s after speech to 0.2 s before it, with closed lips."""
    values = []
    for gap, spoken in zip(gaps, phones, strict=True):
        for p in spoken:
            inner = slice(round((p.start_s + _SETTLE_S) * FPS), round((p.end_s - _SETTLE_S) * FPS))
            if p.name == "SIL":
                values.append(gap[inner] < CLOSED_GAP)
    return float(np.concatenate(values).mean())


def blinks_per_minute(motions: list[Floats]) -> float:
    """Closures of the left lid: above 0.45 after it was below 0.25."""
    count = 0
    for motion in motions:
        shut = False
        for value in motion[:, BLINK]:
            if not shut and value > _BLINK_SHUT:
                shut, count = True, count + 1
            elif shut and value < _BLINK_OPEN:
                shut = False
    return count / (sum(len(m) for m in motions) / FPS / 60)


def border_jerk(motions: list[Floats], columns: slice | list[int]) -> float:
    """Third difference across window borders over that elsewhere; 1 = borders do not show."""
    at, elsewhere = [], []
    for motion in motions:
        jerk = np.abs(np.diff(motion[:, columns], 3, axis=0)).mean(1)
        # a third difference at i spans frames i .. i+3: it crosses a border when one lies inside
        crossing = (np.arange(len(jerk)) + 3) % HOP < 3
        at.append(jerk[crossing])
        elsewhere.append(jerk[~crossing])
    return float(np.concatenate(at).mean() / np.concatenate(elsewhere).mean())


def best_lag(series: list[Floats], truth: list[Floats], most: int = 4) -> tuple[int, float]:
    """Frames by which ``series`` runs late where it correlates best, and that correlation."""
    scores = {}
    for lag in range(-most, most + 1):
        pairs = [
            (s[max(0, lag) : len(s) + min(0, lag)], t[max(0, -lag) : len(t) + min(0, -lag)])
            for s, t in zip(series, truth, strict=True)
        ]
        scores[lag] = correlation(
            np.concatenate([s for s, _ in pairs]), np.concatenate([t for _, t in pairs])
        )
    best = max(scores, key=lambda lag: scores[lag])
    return best, scores[best]


def gaps_of(motions: list[Floats], lip_gap: LipGap) -> list[Floats]:
    """(T,) lip gaps in eye-corner distances."""
    return [lip_gap(torch.from_numpy(m[:, :ACTION_COUNT])).numpy() for m in motions]


def describe(
    title: str, motions: list[Floats], spoken: list[Spoken], lip_gap: LipGap
) -> dict[str, float]:
    """Figures of mouths that need only the phones."""
    gaps, phones = gaps_of(motions, lip_gap), [s.phones for s in spoken]
    wanted = [openness(p, len(g)) for p, g in zip(phones, gaps, strict=True)]
    jaws = [m[:, JAW] for m in motions]
    lag, at_lag = best_lag(jaws, wanted)
    figures = {
        "r(jawOpen, phone openness)": correlation(np.concatenate(jaws), np.concatenate(wanted)),
        "  best r": at_lag,
        "  at lag (frames)": float(lag),
        "lips closed on /p b m/": closed_share(gaps, phones),
        "open vowels visibly open": open_share(gaps, phones),
        "closed in silence": silence_share(gaps, phones),
        "blinks a minute": blinks_per_minute(motions),
        "jerk at borders, jaw": border_jerk(motions, [JAW]),
        "jerk at borders, head": border_jerk(motions, ROTATION),
        "head rotation std (rad)": float(np.mean([m[:, ROTATION].std(0).mean() for m in motions])),
        "jawOpen std": float(np.concatenate(jaws).std()),
    }
    for name, value in figures.items():
        print(f"{title:>16}  {name:<30} {value:7.3f}")
    return figures


def grid_spoken(grid: Grid, corpus: Corpus, clips: NDArray[np.int64]) -> list[Spoken | None]:
    """The clips with their phones; ``None`` where the alignment failed."""
    align = Aligner()
    features = corpus.reference.numpy()
    result: list[Spoken | None] = []
    for i, c in enumerate(clips):
        phones = align(grid.samples[c], grid.texts[c])
        result.append(phones and Spoken(grid.samples[c], phones, features[i]))  # type: ignore[arg-type]
    return result


def unheard_spoken(folder: Path, count: int) -> list[Spoken]:
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
        if phones is not None:
            result.append(Spoken(samples, phones, neutral))
    return result


def evaluate_grid(
    pipeline: StudentPipeline, grid: Grid, clips: int, seeds: int, guidance: Guidance, steps: int
) -> None:
    """Held-out clips against what the speaker did."""
    chosen = held_out(len(grid.texts)) & grid.usable.all(axis=1)
    lip_gap = fit_lip_gap(grid_corpus(grid, ~held_out(len(grid.texts))))
    index = np.flatnonzero(chosen)[:clips]
    chosen[:] = False
    chosen[index] = True
    corpus = grid_corpus(grid, chosen)
    frames = int(corpus.frames[0])
    real = list(corpus.motion.numpy().reshape(-1, frames, corpus.motion.shape[1]))
    sounds = [grid.samples[c] for c in index] * seeds
    features = list(corpus.reference.numpy()) * seeds
    numbers = list(range(seeds * len(index)))
    made = roll_out(pipeline, sounds, features, numbers, guidance, steps)
    jaws = np.stack([m[:, JAW] for m in made]).reshape(seeds, -1)
    truth = np.concatenate([m[:, JAW] for m in real])
    single = [correlation(j, truth) for j in jaws]
    print(f"{'GRID held out':>16}  {len(index)} clips, {seeds} seeds, steps {steps}, {guidance}")
    print(f"{'GRID held out':>16}  {'jawOpen r, one sample':<30} {np.mean(single):7.3f}")
    mean_r = correlation(jaws.mean(0), truth)
    print(f"{'GRID held out':>16}  {f'jawOpen r, mean of {seeds}':<30} {mean_r:7.3f}")
    spoken = grid_spoken(grid, corpus, index)
    aligned = [i for i, s in enumerate(spoken) if s is not None]
    kept = [s for s in spoken if s is not None]
    first = made[: len(index)]
    describe("GRID held out", [first[i] for i in aligned], kept, lip_gap)
    describe("the real speaker", [real[i] for i in aligned], kept, lip_gap)


def evaluate_long(pipeline: StudentPipeline, spoken: list[Spoken], lip_gap: LipGap) -> None:
    """Ten minutes in one session, alternately ten seconds of speech and five of silence."""
    speech = np.concatenate([s.samples for s in spoken])
    piece, pause = 10 * SAMPLE_RATE, 5 * SAMPLE_RATE
    parts, silent = [], []
    for k in range(40):
        parts += [np.roll(speech, -k * piece)[:piece], np.zeros(pause, np.float32)]
        silent += [np.zeros(10 * FPS, bool), np.ones(5 * FPS, bool)]
    info = pipeline.info
    sound = np.concatenate(parts)
    motion = roll_out(pipeline, [sound], [spoken[0].features], [7], info.guidance, info.steps)[0]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tracked GRID clips")
    parser.add_argument("--speech", type=Path, required=True, help="folder of other voices")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "motion-fast.safetensors")
    parser.add_argument("--clips", type=int, default=100, help="held-out GRID clips")
    parser.add_argument("--voices", type=int, default=20, help="speeches of other voices")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, help="sampler steps; the student's own if not given")
    parser.add_argument("--audio-cfg", type=float)
    parser.add_argument("--reference-cfg", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-long", action="store_true", help="leave out the ten minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = motion_pipeline("evaluated", load_weights(args.weights), MotionOnly())
    own = pipeline.info.guidance
    guidance = Guidance(
        own.audio if args.audio_cfg is None else args.audio_cfg,
        own.reference if args.reference_cfg is None else args.reference_cfg,
    )
    steps = args.steps or pipeline.info.steps
    grid = load_grid(args.data)
    evaluate_grid(pipeline, grid, args.clips, args.seeds, guidance, steps)
    lip_gap = fit_lip_gap(grid_corpus(grid, ~held_out(len(grid.texts))))
    spoken = unheard_spoken(args.speech, args.voices)
    sounds, features = [s.samples for s in spoken], [s.features for s in spoken]
    made = roll_out(pipeline, sounds, features, list(range(len(spoken))), guidance, steps)
    describe("other voices", made, spoken, lip_gap)
    if not args.no_long:
        evaluate_long(pipeline, spoken, lip_gap)


if __name__ == "__main__":
    main()
