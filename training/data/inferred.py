"""Infer mouths for voices without tracking from their phones, in the tracked speaker's manner.

The tracked corpus has one male voice. These clips add other voices' real sound with mediocre motion
(a mean over contexts, r = 0.86 against real jaws). `Corpus.confidence` marks them, and sample
weighting decides how much a student learns from them.

Only the mouth is inferred. Eyes and head of a window are taken from a tracked clip when it is drawn
(`WindowSampler`), as sound determines little of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from model.portrait.blendshapes import ACTION_COUNT, MOTION_DIM, MOUTH, reference_features
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats
from training.data.confidence import recorded_confidence, synthetic_confidence
from training.data.corpus import (
    Corpus,
    Grid,
    LipGap,
    background,
    clip_motion,
    log_power,
)
from training.data.phones import (
    BILABIAL,
    LOUD_SILENCE_DB,
    Aligner,
    Phone,
    frames_of,
    loud_silence_db,
    visemes,
)
from training.data.synthetic.corpus import read_phones, read_rows
from training.linear import with_neighbours
from training.losses import CLOSED_GAP

CONTEXT = 6  # frames on both sides that shape a mouth: 0.24 s
_SETTLE_S = 0.12  # lips take this long to settle after speech, and to part before it
_FLOOR_DB, _SPAN_DB = -90.0, 20.0
# Collections to train on (public domain, or free for all use). The others are held out, to measure
# generalisation.
TRAINING_COLLECTIONS = ("ljspeech", "speechocean762_sample")
HOLD_OUT_SPEAKERS_EVERY = 4  # of speechocean762: speakers whose number is a multiple

Row = dict[str, str]  # of the manifest: file, transcript, source, license, seconds


def split_speeches(folder: Path) -> tuple[list[Row], list[Row]]:
    """Transcribed recordings of ``folder``/manifest.csv: those to train on, those held out.

    Split before training by collection and, in speechocean762, by speaker: no voice is in both.
    """
    with (folder / "manifest.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["transcript"]]
    training: list[Row] = []
    unseen: list[Row] = []
    for entry in rows:
        collection, name = entry["file"].split("/")
        trained = collection in TRAINING_COLLECTIONS
        if collection.startswith("speechocean"):
            trained = int(name[:5]) % HOLD_OUT_SPEAKERS_EVERY != 0
        (training if trained else unseen).append(entry)
    return training, unseen


def align_cached(sounds: dict[str, tuple[Floats, str]], cache: Path) -> dict[str, list[Phone]]:
    """The phones of each named (samples, text) that can be aligned; cached, as it takes minutes."""
    known: dict[str, list[list[str | float]] | None] = {}
    if cache.is_file():
        known = json.loads(cache.read_text())
    missing = [name for name in sounds if name not in known]
    align = Aligner()
    for name in tqdm(missing, desc="aligning", unit="clip", disable=not missing):
        phones = align(*sounds[name])
        known[name] = None if phones is None else [list(astuple(p)) for p in phones]
    if missing:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(known))
    found = {name: known[name] for name in sounds}
    return {
        name: [Phone(str(p[0]), float(p[1]), float(p[2])) for p in phones]
        for name, phones in found.items()
        if phones is not None
    }


def phone_features(samples: Floats, phones: list[Phone]) -> Floats:
    """(T, D) visemes and relative loudness of each frame with its neighbours."""
    frames = len(samples) // SAMPLES_PER_FRAME
    power = (samples[: frames * SAMPLES_PER_FRAME].reshape(frames, -1) ** 2).mean(1)
    loudness = 10 * np.log10(power + 10 ** (_FLOOR_DB / 10))
    relative = np.clip((loudness - np.quantile(loudness, 0.95)) / _SPAN_DB, -2.0, 0.5)
    rows = np.concatenate([visemes(phones, frames), relative[:, None]], axis=1)
    return with_neighbours(rows, CONTEXT).astype(np.float32)


class MouthModel:
    """A small regressor from `phone_features` to the mouth's actions."""

    def __init__(self, features: Tensor, actions: Tensor, seed: int) -> None:
        """Fit on ``features`` (N, D) and ``actions`` (N, 52) of tracked clips."""
        torch.manual_seed(seed)
        self._mean = actions.mean(0)
        self._std = actions.std(0).clamp(min=0.01)
        self._net = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(features.shape[1], 192),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(192, 192),
            nn.GELU(),
            nn.Linear(192, ACTION_COUNT),
        )
        target = (actions - self._mean) / self._std
        optimiser = torch.optim.AdamW(self._net.parameters(), 1e-3, weight_decay=0.1)
        for _ in tqdm(range(1500), desc="mouth regressor", unit="step"):
            chosen = torch.randint(len(features), (256,))
            loss = ((self._net(features[chosen]) - target[chosen]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._net.eval()

    def __call__(self, features: Floats) -> Tensor:
        """`phone_features` (T, D) → actions (T, 52)."""
        with torch.no_grad():
            return torch.as_tensor(self._net(torch.from_numpy(features)) * self._std + self._mean)


@dataclass(frozen=True)
class ClosedMouths:
    """Mean actions (52,) of the tracked speaker with closed lips."""

    bilabial: Tensor
    silent: Tensor


def align_grid(grid: Grid, chosen: NDArray[np.bool_], cache: Path) -> dict[int, list[Phone]]:
    """Phones of the ``chosen`` clips (C,) that are tracked and can be aligned, by index."""
    clips = np.flatnonzero(chosen & grid.usable.all(axis=1))
    phones = align_cached({f"grid/{c}": (grid.samples[c], grid.texts[c]) for c in clips}, cache)
    return {int(name.removeprefix("grid/")): found for name, found in phones.items()}


def closed_mouths(grid: Grid, phones: Mapping[int, list[Phone]]) -> ClosedMouths:
    """Means over tracked frames with closed lips, in /p b m/ and in silence.

    ``phones``: of each clip to use, by index.
    """
    found: dict[bool, list[Floats]] = {True: [], False: []}
    for c, of_clip in phones.items():
        actions = clip_motion(grid, c)[0][:, :ACTION_COUNT]
        for p in of_clip:
            if p.name in BILABIAL or p.name == "SIL":
                frames = list(frames_of(p, len(actions)))
                closed = grid.lip_gap[c][frames] < CLOSED_GAP
                found[p.name in BILABIAL].append(actions[frames][closed])
    bilabial, silent = (torch.from_numpy(np.concatenate(found[b]).mean(0)) for b in (True, False))
    return ClosedMouths(bilabial, silent)


def with_closures(actions: Tensor, phones: list[Phone], closed: ClosedMouths) -> Tensor:
    """``actions`` (T, 52) with lips closed on /p b m/ and in silence.

    A regressor's mean over contexts leaves lips slightly open where they must touch: it closes 37 %
    of /p b m/ in read speech, and a network trained on that would do the same.
    """
    frames = len(actions)
    meeting, resting = torch.zeros(frames), torch.zeros(frames)
    for p in phones:
        if p.name in BILABIAL:
            middle = int((p.start_s + p.end_s) / 2 * FPS)
            span = frames_of(p, frames)
            meeting[max(0, span.start - 1) : span.stop + 1] += 0.35
            meeting[list(span)] = 0.8
            meeting[max(0, middle) : middle + 1] = 1.0
        elif p.name == "SIL":
            inner = slice(
                round((p.start_s + _SETTLE_S) * FPS), max(0, round((p.end_s - _SETTLE_S) * FPS))
            )
            resting[inner] = 1.0
    meeting = meeting.clamp(max=1.0)[:, None]
    resting = smoothed(resting)[:, None]
    actions = torch.lerp(actions, closed.silent.expand_as(actions), resting)
    return torch.lerp(actions, closed.bilabial.expand_as(actions), meeting)


def smoothed(curve: Tensor) -> Tensor:
    """``curve`` (T,) averaged over five frames."""
    padded = nn.functional.pad(curve[None, None], (2, 2), mode="replicate")
    return nn.functional.avg_pool1d(padded, 5, 1)[0, 0]


def fit_mouth_model(grid: Grid, phones: Mapping[int, list[Phone]], seed: int) -> MouthModel:
    """Fit on the clips whose ``phones`` are given, by index."""
    features = [phone_features(grid.samples[c], of_clip) for c, of_clip in phones.items()]
    actions = [clip_motion(grid, c)[0][:, :ACTION_COUNT] for c in phones]
    return MouthModel(
        torch.from_numpy(np.concatenate(features)), torch.from_numpy(np.concatenate(actions)), seed
    )


@dataclass(frozen=True)
class LabelledSpeech:
    """Speech of a voice without tracking."""

    samples: Floats  # (N,) at 16 kHz, whole frames
    phones: list[Phone]
    source: str  # see `SampleConfidence`
    confidence: float


def recorded_speeches(folder: Path, cache: Path) -> dict[str, LabelledSpeech]:
    """The training recordings of ``folder`` whose alignment is credible, by file.

    ``cache``: see `align_cached`. Raises ``ValueError`` if one is not at 16 kHz.
    """
    sounds = {
        entry["file"]: (_whole_frames(folder / entry["file"]), entry["transcript"])
        for entry in split_speeches(folder)[0]
    }
    result = {}
    for name, phones in align_cached(sounds, cache).items():
        samples = sounds[name][0]
        loud = loud_silence_db(samples, phones)
        if loud < LOUD_SILENCE_DB:
            confidence = recorded_confidence(loud)
            result[name] = LabelledSpeech(samples, phones, "recorded", confidence=confidence)
    return result


def synthetic_speeches(folder: Path) -> dict[str, LabelledSpeech]:
    """The training part of a folder that `training.data.synthetic.corpus.build` wrote."""
    result = {}
    for row in read_rows(folder):
        if row["split"] == "train":
            name, distance = row["file"], row["alignment_ms"]
            confidence = synthetic_confidence(float(distance) if distance else None)
            samples, phones = _whole_frames(folder / name), read_phones(folder, name)
            result[name] = LabelledSpeech(samples, phones, "synthetic", confidence=confidence)
    return result


def _whole_frames(path: Path) -> Floats:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path}: sample rate {rate}, expected {SAMPLE_RATE}")
    return np.asarray(samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME])


def inferred_corpus(
    speeches: Mapping[str, LabelledSpeech],
    mouths: MouthModel,
    closed: ClosedMouths,
    *,
    lip_gap: LipGap,
) -> Corpus:
    """``speeches`` with inferred mouths and still heads."""
    motion, classes, spectra = [], [], []
    for speech in tqdm(speeches.values(), desc="inferring mouths", unit="clip"):
        samples, phones = speech.samples, speech.phones
        latents = torch.zeros(len(samples) // SAMPLES_PER_FRAME, MOTION_DIM)
        actions = with_closures(mouths(phone_features(samples, phones)), phones, closed)
        latents[:, :ACTION_COUNT] = actions * torch.tensor(MOUTH)
        motion.append(latents)
        classes.append(visemes(phones, len(latents)))
        spectra.append(log_power(samples))
    frames = [len(m) for m in motion]
    every = torch.cat(motion)
    neutral = torch.from_numpy(reference_features(np.zeros(ACTION_COUNT, np.float32), None))
    return Corpus(
        motion=every,
        lip_gap=lip_gap(every[:, :ACTION_COUNT]),
        visemes=torch.from_numpy(np.concatenate(classes)),
        log_power=torch.from_numpy(np.concatenate(spectra)),
        first=torch.tensor(np.cumsum([0, *frames[:-1]])),
        frames=torch.tensor(frames),
        reference=neutral.expand(len(frames), -1).clone(),
        noise=torch.from_numpy(np.stack([background(s) for s in spectra])),
        confidence=torch.tensor([s.confidence for s in speeches.values()]),
    )
