"""The comparison that FADA's paper is about: real motion, teacher, students, each with its cost.

Written by ``fada evaluate --table``: Markdown tables, a plot of what the guidance scales do, and
all figures as JSON. A row that the JSON has already is not judged again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.audio.log_mel import HOP, HOPS_PER_FRAME, PREFIX, log_mel
from model.audio.stream import windows_of
from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.rollout import MotionOnly, reference_of
from model.pipeline import StudentPipeline
from model.types import FPS, Floats, Guidance, WindowTask
from training.data.corpus import Corpus
from training.evaluation.evaluate import HeldOut, run_speeches
from training.evaluation.metrics import (
    JAW,
    MotionFeatures,
    Utterance,
    correlation,
    diversity,
    figures,
    frechet_distance,
    from_first_phone,
)

Make = Callable[[list[Utterance], int], list[Floats]]  # speeches, seed -> motion (T, 58) of each
Values = dict[str, list[float]]  # a figure's value in each take

AUDIO_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
REFERENCE_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
_RIDGE_REACH = 3  # frames to each side
_RIDGE_WEIGHT = 300.0
_TIMED_WINDOWS = 25
_CURVE_CLIPS = 10
_SAID = (
    "phone r", "best phone r", "at lag, ms", "/p b m/ closed", "open vowels open",
    "silence closed", "blinks/min",
)  # fmt: skip
_SMOOTH = ("jerk, jaw × 1000", "jerk, head × 1000", "border jerk, jaw", "border jerk, head")
_VOICES = "voices: "
_AUDIO_KNOB, _REFERENCE_KNOB = "audio 1→4: jaw spread ×", "reference 1→4: shift"
_TABLES = {
    "Held-out clips of the tracked speaker": (
        "jaw r", "jaw r, mean of takes", "jaw r from first phone", *_SAID, "Fréchet", "diversity",
    ),
    "Voices that were never heard": tuple(_VOICES + name for name in _SAID),
    "Smoothness (held-out clips), cost, and what the scales do": (
        *_SMOOTH, "NFE", "ms a second", _AUDIO_KNOB, _REFERENCE_KNOB,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ReportRow:
    """Something that makes motion. ``takes``: 1 where every take would be the same."""

    name: str
    make: Make
    takes: int
    pipeline: StudentPipeline | None = None  # whose scales and cost are measured
    key: str | None = None  # what all its figures depend on; None: cheap, never kept


@dataclass(frozen=True)
class Judged:
    """A row's figures; of a network also the jaw's spread at `AUDIO_SCALES` and how far the mean
    motion moves, in units of its own spread, at `REFERENCE_SCALES`."""

    values: Values
    spreads: list[float]
    shifts: list[float]


def write_table(tests: HeldOut, named: Sequence[str], seeds: int, path: Path) -> None:
    """Judges all rows and writes ``path`` (.md), with a plot (.png) and the figures (.json) beside.

    ``named``: rows as NAME=WEIGHTS or NAME=WEIGHTS:STEPS; without any, the students that ship.
    Raises ``ValueError`` for a row that is not written so.
    """
    words = [_parsed(word) for word in named]
    if not words:
        balanced, fast = (WEIGHTS / f"motion-{name}.safetensors" for name in ("balanced", "fast"))
        words = [("balanced, 18 NFE", balanced, None)] if balanced.is_file() else []
        words += [(f"fast, {n} NFE", fast, n) for n in (6, 4, 2, 1)]
    rows = [
        # the speaker himself said the clips only: of other voices there is no truth
        ReportRow(
            "real motion", lambda spoken, seed: tests.real if spoken is tests.clips else [], 1
        ),
        ReportRow("ridge on log-mels", ridge(tests.training), 1),
    ]
    rows += [_network_row(*word, seeds) for word in words]
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.with_suffix(".json")
    known = _kept(kept)
    size = f"{len(tests.clips)} clips, {len(tests.voices)} voices"
    judged: dict[str, Judged] = {}
    for row in tqdm(rows, unit="row", desc="table"):
        key = None if row.key is None else f"{row.key}, {size}"
        if key in known:
            judged[row.name] = known[key]
            continue
        judged[row.name] = _judge(row, tests)
        if key is not None:
            known[key] = judged[row.name]
            kept.write_text(json.dumps({k: asdict(j) for k, j in known.items()}, indent=1))
    values = {name: j.values for name, j in judged.items()}
    for row in rows:  # one after the other, whenever they were judged: times of one run compare
        if row.pipeline is not None:
            values[row.name]["ms a second"] = [
                1000 * seconds_a_second(row.pipeline, tests.clips[0])
            ]
    path.write_text(markdown(values, len(tests.clips), len(tests.voices), seeds))
    curves = {name: j for name, j in judged.items() if j.spreads and "NFE" in name}
    plot_scales(curves, path.with_suffix(".png"))


def _kept(path: Path) -> dict[str | None, Judged]:
    if not path.is_file():
        return {}
    return {key: Judged(**row) for key, row in json.loads(path.read_text()).items()}


def _parsed(word: str) -> tuple[str, Path, int | None]:
    name, separator, file = word.partition("=")
    place, _, steps = file.partition(":")
    if not separator or not name or (steps and not steps.isdigit()):
        raise ValueError(f"--row {word!r}, expected NAME=WEIGHTS or NAME=WEIGHTS:STEPS")
    return name, Path(place), int(steps) if steps else None


def _network_row(name: str, weights: Path, steps: int | None, seeds: int) -> ReportRow:
    pipeline = motion_pipeline(name, load_weights(weights), MotionOnly())
    used = steps or pipeline.metadata.steps
    pipeline.metadata = replace(pipeline.metadata, steps=used)
    key = f"{hashlib.sha256(weights.read_bytes()).hexdigest()}, {used} steps, {seeds} takes"
    return ReportRow(name, _maker(pipeline, pipeline.metadata.guidance), seeds, pipeline, key)


def _maker(pipeline: StudentPipeline, guidance: Guidance) -> Make:
    def make(spoken: list[Utterance], seed: int) -> list[Floats]:
        return run_speeches(pipeline, spoken, seed * len(spoken), guidance, pipeline.metadata.steps)

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

    def make(spoken: list[Utterance], seed: int) -> list[Floats]:
        made = []
        for speech in spoken:
            windows = windows_of(speech.samples)
            new = np.concatenate([w.features[PREFIX : PREFIX + HOP][: w.frames] for w in windows])
            made.append(((_neighbours(new) - x_mean) @ weights + y_mean).astype(np.float32))
        return made

    return make


def _neighbours(rows: Floats) -> Floats:
    padded = np.pad(rows, ((_RIDGE_REACH, _RIDGE_REACH), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + len(rows)] for i in range(2 * _RIDGE_REACH + 1)], axis=1)


def _judge(row: ReportRow, tests: HeldOut) -> Judged:
    truth = np.concatenate([m[:, JAW] for m in tests.real])
    spoken = from_first_phone(tests.clips, [len(m) for m in tests.real])
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
        jaw = np.concatenate([m[:, JAW] for m in made])
        found = {
            "jaw r": correlation(jaw, truth),
            "jaw r from first phone": correlation(jaw[spoken], truth[spoken]),
        }
        found["Fréchet"] = frechet_distance(features(made), real)
        every = figures(made, tests.clips, tests.lip_gap)
        found |= {name: every[name] for name in _SAID + _SMOOTH}
        others = row.make(tests.voices, seed)
        if others:
            every = figures(others, tests.voices, tests.lip_gap)
            found |= {_VOICES + name: every[name] for name in _SAID}
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    if row.takes > 1:
        jaws = np.mean([np.concatenate([m[:, JAW] for m in take]) for take in takes], axis=0)
        values["jaw r, mean of takes"] = [correlation(jaws, truth)]
        values["diversity"] = [diversity(takes, np.concatenate(training).std(0))]
    if row.pipeline is None:
        return Judged(values, [], [])
    values["NFE"] = [float(row.pipeline.metadata.nfe_per_window)]
    spreads, shifts = _curves(row.pipeline, tests)
    values[_AUDIO_KNOB] = [spreads[-1] / spreads[0]]
    values[_REFERENCE_KNOB] = [shifts[-1]]
    return Judged(values, spreads, shifts)


def seconds_a_second(pipeline: StudentPipeline, speech: Utterance) -> float:
    """Seconds of thinking for a second of video, one session alone: median over windows."""
    windows = windows_of(np.tile(speech.samples, 4))[:_TIMED_WINDOWS]
    state, reference = pipeline.start(0), reference_of(speech.features)
    known, spent = pipeline.metadata, []
    for window in windows:
        task = WindowTask(window, state, reference, known.guidance, known.steps)
        started = time.perf_counter()
        ((_, state),) = pipeline.step([task])
        spent.append((time.perf_counter() - started) / (window.frames / FPS))
    return float(np.median(spent))


def _curves(pipeline: StudentPipeline, tests: HeldOut) -> tuple[list[float], list[float]]:
    """What each scale does while the other stays, see `Judged`."""
    own = pipeline.metadata.guidance

    def run(audio: float, reference: float) -> Floats:
        clips, guidance = tests.clips[:_CURVE_CLIPS], Guidance(audio, reference)
        return np.concatenate(run_speeches(pipeline, clips, 0, guidance, pipeline.metadata.steps))

    spreads = [float(run(scale, own.reference)[:, JAW].std()) for scale in AUDIO_SCALES]
    moved = [run(own.audio, scale) for scale in REFERENCE_SCALES]
    spread = moved[0].std(0) + 1e-3
    shifts = [float(np.abs((m - moved[0]).mean(0) / spread).mean()) for m in moved]
    return spreads, shifts


def plot_scales(judged: Mapping[str, Judged], path: Path) -> None:
    """What each scale does to the motion, a curve a row: smooth and monotonic, or not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, row in judged.items():
        left.plot(AUDIO_SCALES, row.spreads, "o-", label=name)
        right.plot(REFERENCE_SCALES, row.shifts, "o-", label=name)
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


def markdown(judged: Mapping[str, Values], clips: int, voices: int, seeds: int) -> str:
    """The tables, a row a maker of motion."""
    lines = [
        f"{clips} held-out GRID clips, {voices} speeches of voices never heard, {seeds} takes with",
        "different seeds; mean ± half of the 95 % interval of the mean over the takes. Written by",
        "`fada evaluate --table`; milliseconds of one CPU thread a second of video.",
    ]
    for title, columns in _TABLES.items():
        names = [n for n, values in judged.items() if any(c in values for c in columns)]
        heads = [c.removeprefix(_VOICES) for c in columns]
        lines += ["", f"**{title}**", "", "| | " + " | ".join(heads) + " |"]
        lines.append("| --- |" + " ---: |" * len(columns))
        for name in names:
            values = judged[name]
            cells = [interval(values[c]) if c in values else "" for c in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
