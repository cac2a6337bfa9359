"""Training data in memory: motion latents and the spectra of their sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio.log_mel import PAST_SAMPLES, power_spectrum
from model.portrait.blendshapes import (
    ABSOLUTE,
    ACTION_COUNT,
    ACTIONS,
    BLINK,
    reference_features,
    rotation_vectors,
    to_motion,
)
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Floats
from training.data.phones import Phone, visemes

# The tracker's canonical face has 8.9 cm between the outer eye corners; translations are in cm.
EYE_CORNERS_CM = 8.9
# Every tenth clip is held out for evaluation, as decided before any training.
HOLD_OUT_EVERY = 10
MIN_LOG_POWER = float(np.log(1e-12))
_GRID_PICTURE = np.array([360.0, 288.0])  # pixels; landmarks are fractions of them


def held_out(clips: int) -> NDArray[np.bool_]:
    """(clips,) mask of held-out clips: the 10th, 20th, … in file order."""
    return np.asarray(np.arange(clips) % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1)


@dataclass(frozen=True)
class Grid:
    """C tracked clips of one speaker, as stored: each has T frames of its own."""

    coefficients: list[Floats]  # (T, 52)
    pose: list[Floats]  # (T, 6) rotation vector, translation in eye-corner distances
    usable: NDArray[np.bool_]  # (C, longest T) the tracker found a face; True beyond a clip's end
    lip_gap: list[Floats]  # (T,) in eye-corner distances
    samples: list[Floats]  # (T * 640,)
    texts: list[str]  # empty where there is no transcript
    landmarks: Floats | None  # (478, 3) of the speaker; None for ARKit recordings


def load_grid(folder: Path) -> Grid:
    """Read a folder of tracked clips, as `write_folder` writes them.

    ``motion.npz`` holds either ``landmarks62_xy``, in fractions of ``picture`` (360 × 288 if it is
    missing), or, for ARKit recordings, ``lip_gap``. Raises ``ValueError`` if a file is missing or
    its parts disagree.
    """
    for name in ("motion.npz", "audio.opus"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: expected a folder of tracked clips")
    with np.load(folder / "motion.npz") as data:
        names = [str(n) for n in data["blendshape_names"]]
        tracked = data["blendshapes"].astype(np.float32)
        matrices = data["pose"].astype(np.float64)
        usable, starts = data["ok"], data["start"]
        arkit = "lip_gap" in data
        gap = data["lip_gap"] if arkit else _measured_gap(data)
        texts = [str(t) for t in data["text"]]
    order = [names.index(a) if a in names else -1 for a in ACTIONS]
    coefficients = np.where(np.array(order) < 0, 0.0, tracked[:, order]).astype(np.float32)
    pose = np.concatenate(
        [rotation_vectors(matrices[:, :, :3]), matrices[:, :, 3] / EYE_CORNERS_CM], axis=1
    ).astype(np.float32)
    samples, rate = soundfile.read(folder / "audio.opus", dtype="float32")
    if rate != SAMPLE_RATE or len(samples) != len(coefficients) * SAMPLES_PER_FRAME:
        raise ValueError(
            f"audio.opus holds {len(samples)} samples at {rate} Hz, "
            f"expected {len(coefficients) * SAMPLES_PER_FRAME} at {SAMPLE_RATE}"
        )
    borders = starts[1:]
    lengths = np.diff(starts, append=len(coefficients))
    longest = np.ones((len(starts), lengths.max()), bool)
    for row, ok in zip(longest, np.split(usable, borders), strict=True):
        row[: len(ok)] = ok
    return Grid(
        coefficients=np.split(coefficients, borders),
        pose=np.split(pose, borders),
        usable=longest,
        lip_gap=np.split(gap.astype(np.float32), borders),
        samples=np.split(samples, borders * SAMPLES_PER_FRAME),
        texts=texts,
        landmarks=None if arkit else _speaker_geometry(folder / "landmarks478_sample.npz"),
    )


def _measured_gap(data: Mapping[str, NDArray[np.floating]]) -> Floats:
    """(N,) distances of the inner lips' middles, in eye-corner distances."""
    points = data["landmarks62_xy"].astype(np.float32) * _picture(data)
    place = {p: i for i, p in enumerate(data["landmark_index"].tolist())}
    unit = np.linalg.norm(points[:, place[33]] - points[:, place[263]], axis=1)
    gap = np.linalg.norm(points[:, place[13]] - points[:, place[14]], axis=1)
    # Frames without a face hold zeros: any unit keeps them finite; `usable` excludes them.
    return np.asarray(gap / np.where(unit > 0, unit, 1.0))


def _speaker_geometry(file: Path) -> Floats:
    """(478, 3) median of the sampled meshes; their depth is a fraction of the width."""
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no {file.name}: expected a folder of tracked clips")
    with np.load(file) as data:
        mesh = np.median(data["landmarks"].astype(np.float32), axis=0)
        width, height = _picture(data)
    return np.asarray(mesh * np.array([width, height, width], np.float32))


def _picture(data: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
    return data.get("picture", _GRID_PICTURE)


def clip_rest(coefficients: Floats) -> Floats:
    """(T, 52) → (52,) the face at rest in this clip.

    The median over frames with the least open jaw, which are the silent ends of a GRID clip. For
    the lids a low quantile of all frames, since blinks and a lowered gaze only close them.
    """
    jaw = coefficients[:, ACTIONS.index("jawOpen")]
    still = coefficients[jaw <= np.quantile(jaw, 0.3)]
    rest = np.median(still, axis=0)
    rest[BLINK] = np.quantile(coefficients[:, BLINK], 0.25, axis=0)
    gaze = [i for i, name in enumerate(ACTIONS) if name.startswith("eyeLook")]
    rest[gaze] = np.median(coefficients[:, gaze], axis=0)
    return rest.astype(np.float32)


def smooth_pose(pose: Floats) -> Floats:
    """(T, 6) without the tracker's jitter: a quadratic Savitzky-Golay filter over 9 frames."""
    from scipy.signal import savgol_filter  # takes seconds to import

    return np.asarray(savgol_filter(pose, 9, 2, axis=0), np.float32)


def log_power(samples: Floats) -> NDArray[np.float16]:
    """(T * 640,) → (T * 4, bins) natural logarithm of the power, aligned as live features."""
    power = power_spectrum(np.pad(samples, PAST_SAMPLES))
    return np.log(np.maximum(power, 1e-9)).astype(np.float16)


@dataclass(frozen=True)
class Corpus:
    """C clips of any length end to end, N frames in all."""

    motion: Tensor  # (N, 58) latents in physical units
    lip_gap: Tensor  # (N,) in eye-corner distances
    visemes: Tensor  # (N, classes) share of each viseme in a frame; zeros if unknown
    log_power: Tensor  # (4N, bins) float16
    first: Tensor  # (C,) first frames
    frames: Tensor  # (C,) lengths
    reference: Tensor  # (C, 64) features of the portraits
    noise: Tensor  # (C, bins) log power of the background
    confidence: Tensor  # (C,) 1 for tracked motion, less where the motion was inferred

    def __len__(self) -> int:
        return len(self.first)

    def subset(self, chosen: NDArray[np.bool_]) -> Corpus:
        """The same frames with only the ``chosen`` clips (C,)."""
        keep = torch.from_numpy(np.flatnonzero(chosen))
        by_clip = ("first", "frames", "reference", "noise", "confidence")
        return replace(self, **{name: getattr(self, name)[keep] for name in by_clip})


def joined(parts: list[Corpus]) -> Corpus:
    """Several corpora as one."""
    starts = np.cumsum([0] + [len(p.motion) for p in parts[:-1]])
    shifted = [replace(p, first=p.first + int(s)) for p, s in zip(parts, starts, strict=True)]
    return Corpus(
        **{f.name: torch.cat([getattr(p, f.name) for p in shifted]) for f in fields(Corpus)}
    )


def background(spectra: NDArray[np.float16]) -> Floats:
    """(hops, bins) → (bins,) log power of the background: the 10 % quantile."""
    return np.quantile(spectra.astype(np.float32), 0.1, axis=0).astype(np.float32)


def clip_motion(grid: Grid, clip: int) -> tuple[Floats, Floats]:
    """Motion latents (T, 58) of one clip, and the rest (52,) that they are relative to."""
    rest = clip_rest(grid.coefficients[clip])
    pose = smooth_pose(grid.pose[clip])
    return to_motion(
        grid.coefficients[clip], pose, rest=rest, rest_pose=np.median(pose, axis=0)
    ), rest


def grid_corpus(
    grid: Grid, chosen: NDArray[np.bool_], phones: Mapping[int, list[Phone]] | None = None
) -> Corpus:
    """The ``chosen`` clips (C,) except those in which the tracker lost the face.

    ``phones``: of the clips for which they are known, by index.
    """
    known = phones or {}
    motion, gaps, classes, spectra, references, noises = [], [], [], [], [], []
    for c in np.flatnonzero(chosen & grid.usable.all(axis=1)):
        latents, rest = clip_motion(grid, int(c))
        motion.append(latents)
        gaps.append(grid.lip_gap[c])
        classes.append(visemes(known.get(int(c), []), len(latents)))
        spectra.append(log_power(grid.samples[c]))
        references.append(reference_features(rest, grid.landmarks))
        noises.append(background(spectra[-1]))
    frames = [len(m) for m in motion]
    return Corpus(
        motion=torch.from_numpy(np.concatenate(motion)),
        lip_gap=torch.from_numpy(np.concatenate(gaps)),
        visemes=torch.from_numpy(np.concatenate(classes)),
        log_power=torch.from_numpy(np.concatenate(spectra)),
        first=torch.tensor(np.cumsum([0, *frames[:-1]])),
        frames=torch.tensor(frames),
        reference=torch.from_numpy(np.stack(references)),
        noise=torch.from_numpy(np.stack(noises)),
        confidence=torch.ones(len(frames)),
    )


def motion_statistics(corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Mean (58,) and floored standard deviation (58,) of the corpus's clips.

    Actions that never move in the data (the tracker's cheekSquint, noseSneer, tongueOut) hold noise
    only; the floor keeps it small in the network's units.
    """
    spans = [range(int(f), int(f + n)) for f, n in zip(corpus.first, corpus.frames, strict=True)]
    chosen = corpus.motion[torch.cat([torch.tensor(s) for s in spans])]
    floor = torch.full((chosen.shape[1],), 0.01)
    floor[ACTION_COUNT:] = 0.004
    return chosen.mean(0), torch.maximum(chosen.std(0), floor)


@dataclass(frozen=True)
class LipGap:
    """Distance of the inner lips as an affine function of six actions, in eye-corner distances."""

    weights: Tensor  # (52,)
    offset: float

    def __call__(self, actions: Tensor) -> Tensor:
        """Absolute actions (..., 52) → (...) lip gaps."""
        return actions @ self.weights + self.offset


def fit_lip_gap(corpus: Corpus) -> LipGap:
    """Ridge regression of the measured gap on the absolute actions."""
    x = corpus.motion[:, :ACTION_COUNT].double() * torch.tensor(ABSOLUTE)
    mean, target = x.mean(0), corpus.lip_gap.double()
    centred = x - mean
    gram = centred.T @ centred + 1e-4 * len(x) * torch.eye(ACTION_COUNT, dtype=torch.float64)
    weights = torch.linalg.solve(gram, centred.T @ (target - target.mean()))
    return LipGap(weights.float(), float(target.mean() - mean @ weights))
