"""``fada evaluate --table``: real motion, baselines, teacher and students, each with its cost.

Writes Markdown tables, a plot of the guidance scales' effect, and all figures as JSON. Rows that
the JSON holds already are not evaluated again. Intervals are over clips and voices: the same
resamples of them for every row (bootstrap, Efron 1979), so that rows are compared in pairs.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.audio.stream import windows_of
from model.models import WEIGHTS, motion_pipeline
from model.motion.checkpoint import load_weights
from model.motion.rollout import MotionOnly, reference_of
from model.pipeline import StudentPipeline
from model.types import FPS, Floats, Guidance, WindowTask
from training.evaluation.baselines import Make, ridge_baseline, token_readout
from training.evaluation.evaluate import HeldOut, generate
from training.evaluation.metrics import (
    JAW,
    MotionFeatures,
    Utterance,
    correlation,
    diversity,
    figures_from,
    frechet_distance,
    from_first_phone,
    gaps_of,
    jerk,
)

Values = dict[str, list[float]]  # a figure's value for each seed

AUDIO_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
REFERENCE_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
RESAMPLES = 200
_TIMED_WINDOWS = 25
_CURVE_CLIPS = 10
_PHONE_FIGURES = (
    "phone r", "best phone r", "at lag, ms", "/p b m/ closed", "open vowels open",
    "silence closed", "blinks/min",
)  # fmt: skip
_SMOOTH = ("jerk, jaw × 1000", "jerk, head × 1000", "border jerk, jaw", "border jerk, head")
_RAW_JERK = "jerk, jaw, as sampled × 1000"
_FRECHET, _DIVERSITY = "Fréchet", "diversity"
_VOICES = "voices: "
_AUDIO_KNOB, _REFERENCE_KNOB = "audio 1→4: jaw spread ×", "reference 1→4: shift"
_ROW = re.compile(r"([^=]+)=([^:@]+)(?::([1-9]\d*))?(?:@([\d.]+),([\d.]+))?")
_TABLES = {
    "Held-out clips of the tracked speaker": (
        "jaw r", "jaw r, mean of seeds", "jaw r from first phone", *_PHONE_FIGURES, _FRECHET,
        _DIVERSITY,
    ),
    "Unseen voices": tuple(_VOICES + name for name in _PHONE_FIGURES),
    "Smoothness (held-out clips), cost, and what the scales do": (
        *_SMOOTH, _RAW_JERK, "NFE", "ms a second", _AUDIO_KNOB, _REFERENCE_KNOB,
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
    """``NAME=WEIGHTS[:STEPS][@EYES,HEAD]``; None: the network's own steps or temperature."""

    name: str
    weights: Path
    steps: int | None = None
    temperature: tuple[float, float] | None = None


@dataclass(frozen=True)
class RowResult:
    """A row's figures and, for a network, the effect of its guidance scales."""

    values: Values
    resamples: Values  # of each figure, its mean over the seeds in `RESAMPLES` bootstraps
    spreads: list[float]  # standard deviation of the jaw at `AUDIO_SCALES`
    shifts: list[float]  # of the mean motion at `REFERENCE_SCALES`, in standard deviations


def write_report(
    tests: HeldOut, rows: Sequence[str], seeds: int, *, path: Path, against: str | None = None
) -> None:
    """Evaluate all rows and write ``path`` (.md), with a plot (.png) and the figures (.json).

    ``rows``: see `parse_row`; if empty, the students that ship. ``against``: the row that others
    are compared with, by default the last. Raises ``ValueError`` for any other text.
    """
    specs = [parse_row(text) for text in rows] or _shipped_rows()
    compared = specs[-1].name if against is None else against
    if compared not in {spec.name for spec in specs}:
        raise ValueError(f"--against {against!r}, expected the name of a row")
    encoder = load_weights(specs[-1].weights).net.audio_encoder
    every = [
        # Only the speaker's own clips have a true motion.
        ReportRow(
            "real motion",
            lambda utterances, seed: tests.real if utterances is tests.clips else [],
            1,
        ),
        ReportRow("ridge on log-mels", ridge_baseline(tests.training), 1),
        ReportRow("linear readout of audio tokens", token_readout(tests.training, encoder), 1),
    ]
    every += [_network_row(spec, seeds) for spec in specs]
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = path.with_suffix(".json")
    known = _load_results(cache)
    heard = sum(len(u.samples) for u in tests.clips + tests.voices)
    size = f"{len(tests.clips)} clips, {len(tests.voices)} voices, {heard} samples"
    results: dict[str, RowResult] = {"other clips of the speaker": _floor(tests)}
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
    resamples = {name: result.resamples for name, result in results.items()}
    what = f"{len(tests.clips)} held-out clips, {len(tests.voices)} utterances of unseen voices"
    path.write_text(markdown(values, resamples, what, seeds=seeds, against=compared))
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
    """Parse NAME=WEIGHTS[:STEPS][@EYES,HEAD]; raises ``ValueError`` for any other text."""
    found = _ROW.fullmatch(text)
    if found is None:
        raise ValueError(f"--row {text!r}, expected NAME=WEIGHTS[:STEPS][@EYES,HEAD]")
    name, place, steps, eyes, head = found.groups()
    temperature = None if eyes is None else (float(eyes), float(head))
    return RowSpec(name, Path(place), int(steps) if steps else None, temperature)


def _network_row(spec: RowSpec, seeds: int) -> ReportRow:
    weights = load_weights(spec.weights)
    if spec.temperature is not None:
        weights.metadata["temperature"] = spec.temperature
    pipeline = motion_pipeline(spec.name, weights, MotionOnly())
    steps = spec.steps or pipeline.metadata.steps
    pipeline.metadata = replace(pipeline.metadata, steps=steps)
    digest = hashlib.sha256(spec.weights.read_bytes()).hexdigest()
    key = f"{digest}, {steps} steps at {pipeline.metadata.temperature}, {seeds} seeds"
    make = _maker(pipeline, pipeline.metadata.guidance)
    return ReportRow(spec.name, make, seeds, pipeline=pipeline, key=key)


def _maker(pipeline: StudentPipeline, guidance: Guidance) -> Make:
    def make(utterances: list[Utterance], seed: int) -> list[Floats]:
        first = seed * len(utterances)
        return generate(
            pipeline, utterances, first, guidance=guidance, steps=pipeline.metadata.steps
        )

    return make


def _floor(tests: HeldOut) -> RowResult:
    """The Fréchet distance of the speaker's other clips, as many at a time: of no model."""
    training = _training_clips(tests)
    features = MotionFeatures(training)
    real, count = features(tests.real), len(tests.real)
    apart = [
        frechet_distance(features(training[first : first + count]), real)
        for first in range(0, max(1, len(training) - count + 1), count)
    ]
    return RowResult({_FRECHET: apart}, {_FRECHET: apart}, [], [])


def _training_clips(tests: HeldOut) -> list[Floats]:
    corpus = tests.training
    spans = zip(corpus.first.tolist(), corpus.frames.tolist(), strict=True)
    return [corpus.motion[first : first + frames].numpy() for first, frames in spans]


def _evaluate(row: ReportRow, tests: HeldOut) -> RowResult:
    training = _training_clips(tests)
    features = MotionFeatures(training)
    values: Values = {}
    by_seed, resampled = [], []
    for seed in range(row.seeds):
        made = row.make(tests.clips, seed)
        by_seed.append(made)
        clips = _Made(made, tests.clips, tests, features)
        voices = _Made(row.make(tests.voices, seed), tests.voices, tests, None)
        for name, value in (clips.figures() | voices.figures()).items():
            values.setdefault(name, []).append(value)
        random = np.random.default_rng(0)  # the same resamples for every row and seed
        resampled.append(
            [clips.resampled(random) | voices.resampled(random) for _ in range(RESAMPLES)]
        )
    resamples = {
        name: [float(np.mean([draws[k][name] for draws in resampled])) for k in range(RESAMPLES)]
        for name in values
    }
    if row.seeds > 1:
        truth = np.concatenate([m[:, JAW] for m in tests.real])
        jaws = np.mean([np.concatenate([m[:, JAW] for m in made]) for made in by_seed], axis=0)
        values["jaw r, mean of seeds"] = [correlation(jaws, truth)]
        values[_DIVERSITY] = [diversity(by_seed, np.concatenate(training).std(0))]
    if row.pipeline is None:
        return RowResult(values, resamples, [], [])
    values[_RAW_JERK] = [_raw_jerk(row.pipeline, tests)]
    values["NFE"] = [float(row.pipeline.metadata.nfe_per_window)]
    spreads, shifts = _scale_curves(row.pipeline, tests)
    values[_AUDIO_KNOB] = [spreads[-1] / spreads[0]]
    values[_REFERENCE_KNOB] = [shifts[-1]]
    return RowResult(values, resamples, spreads, shifts)


class _Made:
    """Motions of utterances, with what their figures need."""

    def __init__(
        self,
        motions: list[Floats],
        utterances: list[Utterance],
        tests: HeldOut,
        features: MotionFeatures | None,
    ) -> None:
        """``features``: the utterances are the speaker's own clips, whose true motion is known."""
        self._motions, self._utterances = motions, utterances
        self._gaps = gaps_of(motions, tests.lip_gap)
        self._real = tests.real
        self._features = None
        if features is not None:
            self._features = [[features([m]) for m in part] for part in (motions, tests.real)]

    def resampled(self, random: np.random.Generator) -> dict[str, float]:
        """`figures` of as many utterances, drawn with replacement."""
        count = len(self._utterances)
        return self.figures(random.integers(count, size=count))

    def figures(self, index: NDArray[np.int64] | None = None) -> dict[str, float]:
        """Figures of all utterances, or of those that ``index`` lists."""
        chosen = list(range(len(self._utterances))) if index is None else index.tolist()
        if not self._motions:
            return {}
        motions, gaps = ([part[i] for i in chosen] for part in (self._motions, self._gaps))
        utterances = [self._utterances[i] for i in chosen]
        every = figures_from(motions, gaps, utterances)
        if self._features is None:
            return {_VOICES + name: every[name] for name in _PHONE_FIGURES}
        jaw, truth = (
            np.concatenate([part[i][:, JAW] for i in chosen])
            for part in (self._motions, self._real)
        )
        mask = from_first_phone(utterances, [len(m) for m in motions])
        made, real = (np.concatenate([part[i] for i in chosen]) for part in self._features)
        return {
            "jaw r": correlation(jaw, truth),
            "jaw r from first phone": correlation(jaw[mask], truth[mask]),
            _FRECHET: frechet_distance(made, real),
            **{name: every[name] for name in _PHONE_FIGURES + _SMOOTH},
        }


def _raw_jerk(pipeline: StudentPipeline, tests: HeldOut) -> float:
    """Jerk of the jaw before smoothing, of the first seed."""
    raw = pipeline.without_postprocess()
    known = pipeline.metadata
    made = generate(raw, tests.clips, 0, guidance=known.guidance, steps=known.steps)
    return 1000 * jerk(made, [JAW])


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


def interval(
    values: Sequence[float], resamples: Sequence[float] = (), than: Sequence[float] = ()
) -> str:
    """The mean over seeds, with the 95 % interval over clips or voices that ``resamples`` give.

    A star marks a difference from ``than``, the same resamples of another row, whose 95 %
    interval leaves out 0.
    """
    mean = float(np.mean(values))
    if not len(resamples):
        return format_figure(mean)
    low, high = (format_figure(float(v)) for v in np.percentile(resamples, (2.5, 97.5)))
    text = f"{format_figure(mean)} ({low}–{high})"
    if len(than) == len(resamples):
        low_gap, high_gap = np.percentile(np.subtract(resamples, than), (2.5, 97.5))
        text += " *" if low_gap > 0 or high_gap < 0 else ""
    return text


def markdown(
    values: Mapping[str, Values],
    resamples: Mapping[str, Values],
    size: str,
    *,
    seeds: int,
    against: str,
) -> str:
    """The tables; ``values`` and ``resamples`` hold the figures of each row, by its name."""
    lines = [
        f"{size}, {seeds} seeds; in brackets the 95 % interval over clips or voices. A star: the",
        f"difference from *{against}* on the same clips or voices has a 95 % interval without 0.",
        "Written by `fada evaluate --table`; milliseconds are of one CPU thread, per second of",
        "video.",
    ]
    other = resamples.get(against, {})
    for title, columns in _TABLES.items():
        names = [n for n, found in values.items() if any(c in found for c in columns)]
        heads = [c.removeprefix(_VOICES) for c in columns]
        lines += ["", f"**{title}**", "", "| | " + " | ".join(heads) + " |"]
        lines.append("| --- |" + " ---: |" * len(columns))
        for name in names:
            found, drawn = values[name], resamples.get(name, {})
            cells = [
                interval(found[c], drawn.get(c, ()), () if name == against else other.get(c, ()))
                if c in found
                else ""
                for c in columns
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
