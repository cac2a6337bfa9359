"""The comparison that FADA's paper is about: real motion, teacher, students, each with its cost.

Knows: the rows' order and the columns. Does not know: how a figure is computed (`judging`) or a
speech run (`rollout`). Written by ``fada evaluate --table``: a Markdown table and a plot of what
the guidance scales do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.audio.features import HOPS_PER_FRAME, log_mel
from model.audio.windows import HOP, PREFIX, AudioWindower
from model.conditioning import FPS, Floats, Guidance
from model.motion.weights import load_weights
from model.pipeline import StudentPipeline, WindowTask
from model.students import WEIGHTS, motion_pipeline
from model.training.corpus import Corpus
from model.training.evaluation import HeldOut, run_speeches
from model.training.judging import (
    JAW,
    MotionFeatures,
    Spoken,
    correlation,
    diversity,
    figures,
    frechet_distance,
)
from model.training.rollout import MotionOnly, reference_of

Make = Callable[[list[Spoken], int], list[Floats]]  # speeches, seed -> motion (T, 58) of each
Values = dict[str, list[float]]  # a figure's value in each take

AUDIO_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
REFERENCE_SCALES = (1.0, 1.5, 2.0, 3.0)
_RIDGE_REACH = 3  # frames to each side
_RIDGE_WEIGHT = 300.0
_TIMED_WINDOWS = 25
_PER_TAKE = (
    "phone r", "best phone r", "at lag, ms", "/p b m/ closed", "open vowels open",
    "silence closed", "blinks/min", "jerk, jaw × 1000", "jerk, head × 1000",
    "border jerk, jaw", "border jerk, head",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Something that makes motion. ``takes``: 1 where every take would be the same."""

    name: str
    make: Make
    takes: int
    pipeline: StudentPipeline | None = None  # whose scales and cost are measured


def write_table(tests: HeldOut, named: Sequence[str], seeds: int, path: Path) -> None:
    """Judges all rows and writes ``path`` (.md) with a plot beside it (.png).

    ``named``: rows as NAME=WEIGHTS or NAME=WEIGHTS:STEPS; the shipped student at 6, 4, 2 and 1
    steps stands below them. Raises ``ValueError`` for a row that is not written so.
    """
    rows = [
        # the speaker himself said the clips only: of other voices there is no truth
        Row("real motion", lambda spoken, seed: tests.real if spoken is tests.clips else [], 1),
        Row("ridge on log-mels", ridge(tests.training), 1),
    ]
    rows += [_network_row(*_parsed(word), seeds) for word in named]
    fast = WEIGHTS / "motion-fast.safetensors"
    rows += [_network_row(f"fast, {n} NFE", fast, n, seeds) for n in (6, 4, 2, 1)]
    judged = {row.name: _judge(row, tests) for row in tqdm(rows, unit="row", desc="table")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(judged, len(tests.clips), len(tests.voices), seeds))
    networks = [row for row in rows if row.pipeline is not None and "NFE" in row.name]
    plot_scales([networks[0], networks[-4]], tests, path.with_suffix(".png"))


def _parsed(word: str) -> tuple[str, Path, int | None]:
    name, separator, file = word.partition("=")
    place, _, steps = file.partition(":")
    if not separator or not name or (steps and not steps.isdigit()):
        raise ValueError(f"--row {word!r}, expected NAME=WEIGHTS or NAME=WEIGHTS:STEPS")
    return name, Path(place), int(steps) if steps else None


def _network_row(name: str, weights: Path, steps: int | None, seeds: int) -> Row:
    pipeline = motion_pipeline(name, load_weights(weights), MotionOnly())
    branches = pipeline.info.nfe_per_window // pipeline.info.steps
    used = steps or pipeline.info.steps
    pipeline.info = replace(pipeline.info, steps=used, nfe_per_window=used * branches)
    return Row(name, _maker(pipeline, pipeline.info.guidance), seeds, pipeline)


def _maker(pipeline: StudentPipeline, guidance: Guidance) -> Make:
    def make(spoken: list[Spoken], seed: int) -> list[Floats]:
        return run_speeches(pipeline, spoken, seed * len(spoken), guidance, pipeline.info.steps)

    return make


def ridge(training: Corpus) -> Make:
    """The plain linear baseline: log-mel rows around a frame to its latents."""
    rows, targets = [], []
    for first, frames in zip(training.first.tolist(), training.frames.tolist(), strict=True):
        hops = slice(first * HOPS_PER_FRAME, (first + frames) * HOPS_PER_FRAME)
        mel = log_mel(training.log_power[hops].float().exp().numpy())
        rows.append(_neighbours(mel.reshape(frames, -1)))
        targets.append(training.motion[first : first + frames].numpy())
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(targets).astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram = (x - x_mean).T @ (x - x_mean) + _RIDGE_WEIGHT * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, (x - x_mean).T @ (y - y_mean))

    def make(spoken: list[Spoken], seed: int) -> list[Floats]:
        made = []
        for speech in spoken:
            windower = AudioWindower()
            windows = windower.push(speech.samples) + windower.finish()
            new = np.concatenate([w.features[PREFIX : PREFIX + HOP][: w.frames] for w in windows])
            made.append(((_neighbours(new) - x_mean) @ weights + y_mean).astype(np.float32))
        return made

    return make


def _neighbours(rows: Floats) -> Floats:
    padded = np.pad(rows, ((_RIDGE_REACH, _RIDGE_REACH), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(rows)] for i in range(2 * _RIDGE_REACH + 1)], axis=1)


def _judge(row: Row, tests: HeldOut) -> Values:
    truth = np.concatenate([m[:, JAW] for m in tests.real])
    corpus = tests.training
    spans = zip(corpus.first.tolist(), corpus.frames.tolist(), strict=True)
    training = [corpus.motion[first : first + frames].numpy() for first, frames in spans]
    features = MotionFeatures(training)
    real = features(tests.real)
    values: Values = {}
    takes = []
    for seed in range(row.takes):
        made = row.make(tests.clips, seed)
        takes.append(made)
        found = {"jaw r": correlation(np.concatenate([m[:, JAW] for m in made]), truth)}
        found["Fréchet"] = frechet_distance(features(made), real)
        found |= _chosen(made, tests.clips, tests)
        others = row.make(tests.voices, seed)
        if others:
            found |= {f"voices: {k}": v for k, v in _chosen(others, tests.voices, tests).items()}
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    if row.takes > 1:
        jaws = np.mean([np.concatenate([m[:, JAW] for m in take]) for take in takes], axis=0)
        values["jaw r, mean of takes"] = [correlation(jaws, truth)]
        values["diversity"] = [diversity(takes, np.concatenate(training).std(0))]
    if row.pipeline is not None:
        values["NFE"] = [float(row.pipeline.info.nfe_per_window)]
        values["ms a second"] = [seconds_a_second(row.pipeline, tests.clips[0]) * 1000]
        values |= _responses(row.pipeline, tests)
    return values


def _chosen(made: list[Floats], spoken: list[Spoken], tests: HeldOut) -> dict[str, float]:
    every = figures(made, spoken, tests.lip_gap)
    return {name: every[name] for name in _PER_TAKE}


def seconds_a_second(pipeline: StudentPipeline, speech: Spoken) -> float:
    """Seconds of thinking for a second of video, one session alone: median over windows."""
    windower = AudioWindower()
    windows = (windower.push(np.tile(speech.samples, 4)) + windower.finish())[:_TIMED_WINDOWS]
    state, reference = pipeline.start(0), reference_of(speech.features)
    info, spent = pipeline.info, []
    for window in windows:
        task = WindowTask(window, state, reference, info.guidance, info.steps)
        started = time.perf_counter()
        ((_, state),) = pipeline.step([task])
        spent.append((time.perf_counter() - started) / (window.frames / FPS))
    return float(np.median(spent))


def _responses(pipeline: StudentPipeline, tests: HeldOut) -> Values:
    """How much two knobs do: the jaw's spread at audio scale 3 against that at 1, and how far the
    motion moves, in units of its own spread, between reference scale 1 and 3."""
    own = pipeline.info.guidance
    quiet, loud = (_run(pipeline, tests, Guidance(s, own.reference)) for s in (1.0, 3.0))
    near, far = (_run(pipeline, tests, Guidance(own.audio, s)) for s in (1.0, 3.0))
    spread = near.std(0) + 1e-3
    return {
        "audio 1→3: jaw spread ×": [float(loud[:, JAW].std() / quiet[:, JAW].std())],
        "reference 1→3: shift": [float(np.abs((far - near).mean(0) / spread).mean())],
    }


def _run(pipeline: StudentPipeline, tests: HeldOut, guidance: Guidance) -> Floats:
    clips = tests.clips[:10]
    return np.concatenate(run_speeches(pipeline, clips, 0, guidance, pipeline.info.steps))


def plot_scales(rows: Sequence[Row], tests: HeldOut, path: Path) -> None:
    """What each scale does to the motion, curve by curve: smooth and monotonic, or not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for row in rows:
        if row.pipeline is None:
            continue
        own = row.pipeline.info.guidance
        jaws = [
            float(_run(row.pipeline, tests, Guidance(s, own.reference))[:, JAW].std())
            for s in AUDIO_SCALES
        ]
        left.plot(AUDIO_SCALES, jaws, "o-", label=row.name)
        moved = [_run(row.pipeline, tests, Guidance(own.audio, s)) for s in REFERENCE_SCALES]
        spread = moved[0].std(0) + 1e-3
        shifts = [float(np.abs((m - moved[0]).mean(0) / spread).mean()) for m in moved]
        right.plot(REFERENCE_SCALES, shifts, "o-", label=row.name)
    left.set(xlabel="audio_cfg", ylabel="spread of jawOpen")
    right.set(xlabel="reference_cfg", ylabel="mean shift of the motion, in its own spread")
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def interval(values: Sequence[float]) -> str:
    """Mean ± half the 95 % interval of the mean; the plain value where there is one."""
    mean = float(np.mean(values))
    digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 2 if abs(mean) >= 2 else 3
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def markdown(judged: dict[str, Values], clips: int, voices: int, seeds: int) -> str:
    """The table, a row a figure, a column a maker of motion."""
    names = list(judged)
    known: list[str] = []
    for values in judged.values():
        known += [name for name in values if name not in known]
    lines = [
        f"{clips} held-out GRID clips, {voices} speeches of voices never heard, {seeds} takes with",
        "different seeds; mean ± half of the 95 % interval of the mean. Written by",
        "`fada evaluate --table` on one CPU thread.",
        "",
        "| | " + " | ".join(names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for figure in known:
        cells = [interval(judged[n][figure]) if figure in judged[n] else "" for n in names]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
