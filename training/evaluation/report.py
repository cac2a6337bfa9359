"""``fada evaluate --table``: real motion, baseline, teacher and students, each with its cost.

Writes Markdown tables, a plot of the guidance scales' effect, and all figures as JSON. Rows that
the JSON holds already are not evaluated again.
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
from training.evaluation.evaluate import HeldOut, generate
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
from training.linear import ridge, with_neighbours

Make = Callable[[list[Utterance], int], list[Floats]]  # utterances, seed → motions (T, 58)
Values = dict[str, list[float]]  # a figure's value for each seed

AUDIO_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
REFERENCE_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
_RIDGE_REACH = 3  # frames on both sides
_RIDGE_PENALTY = 300.0
_TIMED_WINDOWS = 25
_CURVE_CLIPS = 10
_PHONE_FIGURES = (
    "phone r", "best phone r", "at lag, ms", "/p b m/ closed", "open vowels open",
    "silence closed", "blinks/min",
)  # fmt: skip
_SMOOTH = ("jerk, jaw × 1000", "jerk, head × 1000", "border jerk, jaw", "border jerk, head")
_VOICES = "voices: "
_AUDIO_KNOB, _REFERENCE_KNOB = "audio 1→4: jaw spread ×", "reference 1→4: shift"
_TABLES = {
    "Held-out clips of the tracked speaker": (
        "jaw r", "jaw r, mean of seeds", "jaw r from first phone", *_PHONE_FIGURES, "Fréchet",
        "diversity",
    ),
    "Unseen voices": tuple(_VOICES + name for name in _PHONE_FIGURES),
    "Smoothness (held-out clips), cost, and what the scales do": (
        *_SMOOTH, "NFE", "ms a second", _AUDIO_KNOB, _REFERENCE_KNOB,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ReportRow:
    """Something that makes motion."""

    name: str
    make: Make
    seeds: int  # 1 if it is deterministic
    pipeline: StudentPipeline | None = None  # whose scales and cost are measured
    key: str | None = None  # cache key of its figures; None: not cached


@dataclass(frozen=True)
class RowSpec:
    """``NAME=WEIGHTS[:STEPS]``; ``steps`` None: the network's own."""

    name: str
    weights: Path
    steps: int | None = None


@dataclass(frozen=True)
class RowResult:
    """A row's figures and, for a network, the effect of its guidance scales."""

    values: Values
    spreads: list[float]  # standard deviation of the jaw at `AUDIO_SCALES`
    shifts: list[float]  # of the mean motion at `REFERENCE_SCALES`, in standard deviations


def write_report(tests: HeldOut, rows: Sequence[str], seeds: int, *, path: Path) -> None:
    """Evaluate all rows and write ``path`` (.md), with a plot (.png) and the figures (.json).

    ``rows``: NAME=WEIGHTS or NAME=WEIGHTS:STEPS; if empty, the students that ship. Raises
    ``ValueError`` for any other text.
    """
    every = [
        # Only the speaker's own clips have a true motion.
        ReportRow(
            "real motion",
            lambda utterances, seed: tests.real if utterances is tests.clips else [],
            1,
        ),
        ReportRow("ridge on log-mels", ridge_baseline(tests.training), 1),
    ]
    specs = [parse_row(text) for text in rows] or _shipped_rows()
    every += [_network_row(spec, seeds) for spec in specs]
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = path.with_suffix(".json")
    known = _load_results(cache)
    size = f"{len(tests.clips)} clips, {len(tests.voices)} voices"
    results: dict[str, RowResult] = {}
    for row in tqdm(every, unit="row", desc="table"):
        key = None if row.key is None else f"{row.key}, {size}"
        if key in known:
            results[row.name] = known[key]
            continue
        results[row.name] = _evaluate(row, tests)
        if key is not None:
            known[key] = results[row.name]
            cache.write_text(json.dumps({k: asdict(r) for k, r in known.items()}, indent=1))
    values = {name: result.values for name, result in results.items()}
    for row in every:  # all in one run, cached or not, so that the times compare
        if row.pipeline is not None:
            values[row.name]["ms a second"] = [
                1000 * seconds_per_second(row.pipeline, tests.clips[0])
            ]
    path.write_text(markdown(values, len(tests.clips), len(tests.voices), seeds=seeds))
    curves = {name: r for name, r in results.items() if r.spreads and "NFE" in name}
    plot_scales(curves, path.with_suffix(".png"))


def _shipped_rows() -> list[RowSpec]:
    balanced, fast = (WEIGHTS / f"motion-{name}.safetensors" for name in ("balanced", "fast"))
    rows = [RowSpec("balanced, 12 NFE", balanced)] if balanced.is_file() else []
    return rows + [RowSpec(f"fast, {n} NFE", fast, n) for n in (6, 4, 2, 1)]


def _load_results(path: Path) -> dict[str | None, RowResult]:
    if not path.is_file():
        return {}
    return {key: RowResult(**row) for key, row in json.loads(path.read_text()).items()}


def parse_row(text: str) -> RowSpec:
    """Parse NAME=WEIGHTS or NAME=WEIGHTS:STEPS; raises ``ValueError`` for any other text."""
    name, separator, file = text.partition("=")
    place, _, steps = file.partition(":")
    if not separator or not name or (steps and not (steps.isdigit() and int(steps))):
        raise ValueError(f"--row {text!r}, expected NAME=WEIGHTS or NAME=WEIGHTS:STEPS")
    return RowSpec(name, Path(place), int(steps) if steps else None)


def _network_row(spec: RowSpec, seeds: int) -> ReportRow:
    pipeline = motion_pipeline(spec.name, load_weights(spec.weights), MotionOnly())
    steps = spec.steps or pipeline.metadata.steps
    pipeline.metadata = replace(pipeline.metadata, steps=steps)
    key = f"{hashlib.sha256(spec.weights.read_bytes()).hexdigest()}, {steps} steps, {seeds} seeds"
    make = _maker(pipeline, pipeline.metadata.guidance)
    return ReportRow(spec.name, make, seeds, pipeline=pipeline, key=key)


def _maker(pipeline: StudentPipeline, guidance: Guidance) -> Make:
    def make(utterances: list[Utterance], seed: int) -> list[Floats]:
        first = seed * len(utterances)
        return generate(
            pipeline, utterances, first, guidance=guidance, steps=pipeline.metadata.steps
        )

    return make


def ridge_baseline(training: Corpus) -> Make:
    """Linear regression from the log-mel rows around a frame to its latents."""
    rows, targets = [], []
    for first, frames in zip(training.first.tolist(), training.frames.tolist(), strict=True):
        hops = slice(first * HOPS_PER_FRAME, (first + frames) * HOPS_PER_FRAME)
        mel = log_mel(training.log_power[hops].float().exp().numpy())
        rows.append(with_neighbours(mel.reshape(frames, -1), _RIDGE_REACH))
        targets.append(training.motion[first : first + frames].numpy())
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(targets).astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    weights = ridge(x - x_mean, y - y_mean, _RIDGE_PENALTY)

    def make(utterances: list[Utterance], seed: int) -> list[Floats]:
        made = []
        for utterance in utterances:
            windows = windows_of(utterance.samples)
            new = np.concatenate([w.features[PREFIX : PREFIX + HOP][: w.frames] for w in windows])
            x_new = with_neighbours(new, _RIDGE_REACH)
            made.append(((x_new - x_mean) @ weights + y_mean).astype(np.float32))
        return made

    return make


def _evaluate(row: ReportRow, tests: HeldOut) -> RowResult:
    truth = np.concatenate([m[:, JAW] for m in tests.real])
    mask = from_first_phone(tests.clips, [len(m) for m in tests.real])
    corpus = tests.training
    spans = zip(corpus.first.tolist(), corpus.frames.tolist(), strict=True)
    training = [corpus.motion[first : first + frames].numpy() for first, frames in spans]
    features = MotionFeatures(training)
    real = features(tests.real)
    values: Values = {}
    by_seed = []
    for seed in range(row.seeds):
        made = row.make(tests.clips, seed)
        by_seed.append(made)
        jaw = np.concatenate([m[:, JAW] for m in made])
        found = {
            "jaw r": correlation(jaw, truth),
            "jaw r from first phone": correlation(jaw[mask], truth[mask]),
        }
        found["Fréchet"] = frechet_distance(features(made), real)
        every = figures(made, tests.clips, tests.lip_gap)
        found |= {name: every[name] for name in _PHONE_FIGURES + _SMOOTH}
        others = row.make(tests.voices, seed)
        if others:
            every = figures(others, tests.voices, tests.lip_gap)
            found |= {_VOICES + name: every[name] for name in _PHONE_FIGURES}
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    if row.seeds > 1:
        jaws = np.mean([np.concatenate([m[:, JAW] for m in made]) for made in by_seed], axis=0)
        values["jaw r, mean of seeds"] = [correlation(jaws, truth)]
        values["diversity"] = [diversity(by_seed, np.concatenate(training).std(0))]
    if row.pipeline is None:
        return RowResult(values, [], [])
    values["NFE"] = [float(row.pipeline.metadata.nfe_per_window)]
    spreads, shifts = _scale_curves(row.pipeline, tests)
    values[_AUDIO_KNOB] = [spreads[-1] / spreads[0]]
    values[_REFERENCE_KNOB] = [shifts[-1]]
    return RowResult(values, spreads, shifts)


def seconds_per_second(pipeline: StudentPipeline, speech: Utterance) -> float:
    """Seconds of computing per second of video for one session alone, median over windows."""
    windows = windows_of(np.tile(speech.samples, 4))[:_TIMED_WINDOWS]
    state, reference = pipeline.start(0), reference_of(speech.features)
    known, spent = pipeline.metadata, []
    for window in windows:
        task = WindowTask(window, state, reference, known.guidance, known.steps)
        started = time.perf_counter()
        ((_, state),) = pipeline.step([task])
        spent.append((time.perf_counter() - started) / (window.frames / FPS))
    return float(np.median(spent))


def _scale_curves(pipeline: StudentPipeline, tests: HeldOut) -> tuple[list[float], list[float]]:
    """`RowResult.spreads` and `RowResult.shifts`: each scale is varied alone."""
    own = pipeline.metadata.guidance

    def run(audio: float, reference: float) -> Floats:
        clips, guidance = tests.clips[:_CURVE_CLIPS], Guidance(audio, reference)
        steps = pipeline.metadata.steps
        return np.concatenate(generate(pipeline, clips, 0, guidance=guidance, steps=steps))

    spreads = [float(run(scale, own.reference)[:, JAW].std()) for scale in AUDIO_SCALES]
    moved = [run(own.audio, scale) for scale in REFERENCE_SCALES]
    spread = moved[0].std(0) + 1e-3
    shifts = [float(np.abs((m - moved[0]).mean(0) / spread).mean()) for m in moved]
    return spreads, shifts


def plot_scales(results: Mapping[str, RowResult], path: Path) -> None:
    """Plot the effect of each scale, with a curve per row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, row in results.items():
        left.plot(AUDIO_SCALES, row.spreads, "o-", label=name)
        right.plot(REFERENCE_SCALES, row.shifts, "o-", label=name)
    left.set(xlabel="audio_cfg", ylabel="spread of jawOpen")
    right.set(xlabel="reference_cfg", ylabel="mean shift of the motion, in its own spread")
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _digits(value: float) -> int:
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 2 else 3


def format_figure(value: float) -> str:
    """``value`` with about three significant digits."""
    return f"{value:.{_digits(value)}f}"


def interval(values: Sequence[float]) -> str:
    """Mean ± half of its 95 % confidence interval; a single value alone."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return format_figure(mean)
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{format_figure(mean)} ± {half:.{_digits(mean)}f}"


def markdown(values: Mapping[str, Values], clips: int, voices: int, *, seeds: int) -> str:
    """The tables; ``values`` holds the figures of each row, by its name."""
    lines = [
        f"{clips} held-out GRID clips, {voices} utterances of unseen voices, {seeds} seeds; mean ±",
        "half of its 95 % confidence interval over the seeds. Written by `fada evaluate --table`;",
        "milliseconds are of one CPU thread, per second of video.",
    ]
    for title, columns in _TABLES.items():
        names = [n for n, found in values.items() if any(c in found for c in columns)]
        heads = [c.removeprefix(_VOICES) for c in columns]
        lines += ["", f"**{title}**", "", "| | " + " | ".join(heads) + " |"]
        lines.append("| --- |" + " ---: |" * len(columns))
        for name in names:
            found = values[name]
            cells = [interval(found[c]) if c in found else "" for c in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
