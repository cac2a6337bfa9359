"""Mouths for voices without tracking: from their phones, as GRID's speaker would say them.

The real corpus has one male voice; these clips are mediocre motion (a mean over contexts, r = 0.86
with real jaws) on other people's real sound. `Corpus.trust` marks them, and the student's adaptive
weight decides how much they may say.

Only the mouth is inferred. Eyes and head of such a window are taken from a real clip when it is
drawn (`batches.WindowSampler`): sound says little of them.
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
from training.data.confidence import recorded_quality, synthetic_quality
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
from training.data.synthesis import read_phones, read_rows
from training.losses import CLOSED_GAP

CONTEXT = 6  # frames to each side that shape a mouth: 0.24 s
_SETTLE_S = 0.12  # lips take this long to come to rest, and to part before speech
_FLOOR_DB, _SPAN_DB = -90.0, 20.0
# Collections that may be learned from (public domain, and free for all use). The others stay
# unheard: they are what generalisation is measured on.
LEARNED_FROM = ("ljspeech", "speechocean762_sample")
HELD_OUT_SPEAKERS = 4  # speechocean762: speakers whose number is a multiple are never heard

Row = dict[str, str]  # a row of the manifest: file, transcript, source, license, seconds


def speeches(folder: Path) -> tuple[list[Row], list[Row]]:
    """Transcribed speeches of ``folder``/manifest.csv: those to learn from, those never heard.

    Decided before training by collection and, in speechocean762, by speaker: no voice is in both.
    """
    with (folder / "manifest.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["transcript"]]
    learned: list[Row] = []
    unheard: list[Row] = []
    for entry in rows:
        collection, name = entry["file"].split("/")
        kept = collection in LEARNED_FROM
        if collection.startswith("speechocean"):
            kept = int(name[:5]) % HELD_OUT_SPEAKERS != 0
        (learned if kept else unheard).append(entry)
    return learned, unheard


def aligned(sounds: dict[str, tuple[Floats, str]], cache: Path) -> dict[str, list[Phone]]:
    """The phones of each named (samples, text) whose alignment succeeds; minutes, so kept."""
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


def spoken_features(samples: Floats, phones: list[Phone]) -> Floats:
    """(T, D): visible classes and relative loudness of each frame with its neighbours."""
    frames = len(samples) // SAMPLES_PER_FRAME
    power = (samples[: frames * SAMPLES_PER_FRAME].reshape(frames, -1) ** 2).mean(1)
    loudness = 10 * np.log10(power + 10 ** (_FLOOR_DB / 10))
    relative = np.clip((loudness - np.quantile(loudness, 0.95)) / _SPAN_DB, -2.0, 0.5)
    rows = np.concatenate([visemes(phones, frames), relative[:, None]], axis=1)
    padded = np.pad(rows, ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
    near = [padded[i : i + frames] for i in range(2 * CONTEXT + 1)]
    return np.concatenate(near, axis=1).astype(np.float32)


class MouthModel:
    """A small regressor from `spoken_features` to the mouth's actions, fitted on tracked clips."""

    def __init__(self, features: Tensor, actions: Tensor, seed: int) -> None:
        """``features`` (N, D), ``actions`` (N, 52) latents."""
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
        for _ in tqdm(range(1500), desc="mouths from phones", unit="step"):
            chosen = torch.randint(len(features), (256,))
            loss = ((self._net(features[chosen]) - target[chosen]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._net.eval()

    def __call__(self, features: Floats) -> Tensor:
        """(T, D) -> (T, 52)"""
        with torch.no_grad():
            return torch.as_tensor(self._net(torch.from_numpy(features)) * self._std + self._mean)


@dataclass(frozen=True)
class ClosedMouths:
    """Mouths with closed lips as the tracked speaker makes them, (52,) each."""

    bilabial: Tensor
    silent: Tensor


def grid_phones(grid: Grid, chosen: NDArray[np.bool_], cache: Path) -> dict[int, list[Phone]]:
    """What is said in those of the ``chosen`` clips (C,) that are tracked and can be aligned."""
    clips = np.flatnonzero(chosen & grid.usable.all(axis=1))
    phones = aligned({f"grid/{c}": (grid.samples[c], grid.texts[c]) for c in clips}, cache)
    return {int(name.removeprefix("grid/")): said for name, said in phones.items()}


def closed_mouths(grid: Grid, phones: Mapping[int, list[Phone]]) -> ClosedMouths:
    """Means over tracked frames with closed lips, inside /p b m/ and inside silence.

    ``phones``: what is said in each clip to use.
    """
    found: dict[bool, list[Floats]] = {True: [], False: []}
    for c, said in phones.items():
        actions = clip_motion(grid, c)[0][:, :ACTION_COUNT]
        for p in said:
            if p.name in BILABIAL or p.name == "SIL":
                frames = list(frames_of(p, len(actions)))
                closed = grid.lip_gap[c][frames] < CLOSED_GAP
                found[p.name in BILABIAL].append(actions[frames][closed])
    return ClosedMouths(
        *(torch.from_numpy(np.concatenate(found[b]).mean(0)) for b in (True, False))
    )


def with_closures(actions: Tensor, phones: list[Phone], closed: ClosedMouths) -> Tensor:
    """(T, 52) ``actions`` with lips that meet on /p b m/ and rest together in silence.

    A regressor's mean over contexts leaves lips a little open where they must touch (37 % of
    /p b m/ closed on read speech), and a network that learns from it would too.
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
    """(T,) averaged over five frames."""
    padded = nn.functional.pad(curve[None, None], (2, 2), mode="replicate")
    return nn.functional.avg_pool1d(padded, 5, 1)[0, 0]


def fit_mouths(grid: Grid, phones: Mapping[int, list[Phone]], seed: int) -> MouthModel:
    """Fits on the clips whose ``phones`` are given."""
    features = [spoken_features(grid.samples[c], said) for c, said in phones.items()]
    actions = [clip_motion(grid, c)[0][:, :ACTION_COUNT] for c in phones]
    return MouthModel(
        torch.from_numpy(np.concatenate(features)), torch.from_numpy(np.concatenate(actions)), seed
    )


@dataclass(frozen=True)
class LabelledSpeech:
    """Sound of a voice without tracking."""

    samples: Floats  # (N,) in whole frames
    phones: list[Phone]
    source: str  # see `quality.Quality`
    quality: float


Speeches = Mapping[str, LabelledSpeech]


def heard_speeches(folder: Path, cache: Path) -> Speeches:
    """The recordings of ``folder`` that may be learned from and whose alignment is credible.

    Raises ``ValueError`` when one is not at 16 kHz.
    """
    sounds = {
        entry["file"]: (_whole_frames(folder / entry["file"]), entry["transcript"])
        for entry in speeches(folder)[0]
    }
    result = {}
    for name, said in aligned(sounds, cache).items():
        samples = sounds[name][0]
        loud = loud_silence_db(samples, said)
        if loud < LOUD_SILENCE_DB:
            result[name] = LabelledSpeech(samples, said, "recorded", recorded_quality(loud))
    return result


def synthetic_speeches(folder: Path) -> Speeches:
    """The training side of a folder that `synthesis.build` wrote."""
    result = {}
    for row in read_rows(folder):
        if row["split"] == "train":
            name, apart = row["file"], row["alignment_ms"]
            quality = synthetic_quality(float(apart) if apart else None)
            samples, phones = _whole_frames(folder / name), read_phones(folder, name)
            result[name] = LabelledSpeech(samples, phones, "synthetic", quality)
    return result


def _whole_frames(path: Path) -> Floats:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path} has {rate} samples a second, expected {SAMPLE_RATE}")
    return np.asarray(samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME])


def inferred_corpus(
    spoken: Speeches, mouths: MouthModel, closed: ClosedMouths, lip_gap: LipGap
) -> Corpus:
    """Speeches with inferred mouths and still heads."""
    motion, classes, spectra = [], [], []
    for speech in tqdm(spoken.values(), desc="mouths for other voices", unit="clip"):
        samples, phones = speech.samples, speech.phones
        latents = torch.zeros(len(samples) // SAMPLES_PER_FRAME, MOTION_DIM)
        actions = with_closures(mouths(spoken_features(samples, phones)), phones, closed)
        latents[:, :ACTION_COUNT] = actions * torch.tensor(MOUTH)
        motion.append(latents)
        classes.append(visemes(phones, len(latents)))
        spectra.append(log_power(samples))
    frames = [len(m) for m in motion]
    every = torch.cat(motion)
    neutral = torch.from_numpy(reference_features(np.zeros(ACTION_COUNT, np.float32), None))
    return Corpus(
        every,
        lip_gap(every[:, :ACTION_COUNT]),
        torch.from_numpy(np.concatenate(classes)),
        torch.from_numpy(np.concatenate(spectra)),
        torch.tensor(np.cumsum([0, *frames[:-1]])),
        torch.tensor(frames),
        neutral.expand(len(frames), -1).clone(),
        torch.from_numpy(np.stack([background(s) for s in spectra])),
        torch.tensor([s.quality for s in spoken.values()]),
    )
