"""A folder of training video: square crops around a face with their sound, cut into clips.

Its arrays are memory-mapped, so a corpus may be larger than memory.

``clips.json`` holds the square's side and the list of clips. The arrays beside it have N frames:

    frames.npy        (N, side, side, 3) uint8   RGB
    latents.npy       (N, C, h, w) float16       VAE latents, optional
    tokens.npy        (N, S, W) float16          Whisper states of each frame, optional
    log_power.npy     (4N, bins) float16         log spectra, 4 per frame
    samples.npy       (640N,) int16              sound, 16 kHz mono
    marks.npy         (N, 62, 2) float32         landmarks `LANDMARK_INDEX`, in sides of the square
    coefficients.npy  (N, 52) float32            in the order of `ACTIONS`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.audio.log_mel import HOPS_PER_FRAME, SPECTRUM_BINS
from model.portrait.blendshapes import ACTION_COUNT
from model.types import SAMPLES_PER_FRAME, Floats
from training.data.corpus import log_power
from training.data.tracking import LANDMARK_INDEX

INDEX = "clips.json"
_PLACE = {int(p): i for i, p in enumerate(LANDMARK_INDEX)}
# Mouth corners, middles of the inner lips, outer eye corners: rows of `LANDMARK_INDEX`.
CORNERS, INNER_LIPS, EYES = ([_PLACE[a], _PLACE[b]] for a, b in ((61, 291), (13, 14), (33, 263)))
_ROWS = {  # per frame
    "frames": 1,
    "latents": 1,
    "tokens": 1,
    "log_power": HOPS_PER_FRAME,
    "samples": SAMPLES_PER_FRAME,
    "marks": 1,
    "coefficients": 1,
}
_OPTIONAL = ("latents", "tokens")


@dataclass(frozen=True)
class ClipEntry:
    """Frames ``first`` to ``first + frames`` of a folder: one person, without a cut.

    ``confidence`` (0 to 1) weights the clip in training; `clip_confidence` derives it from
    ``scores``.
    """

    name: str
    first: int
    frames: int
    text: str = ""
    confidence: float = 1.0
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def span(self) -> slice:
        """Its frames in the folder's arrays."""
        return slice(self.first, self.first + self.frames)


@dataclass(frozen=True)
class ClipPiece:
    """The content of one clip of T frames, to be written into a folder."""

    name: str
    frames: NDArray[np.uint8]  # (T, side, side, 3)
    samples: Floats  # (640 T,)
    marks: Floats  # (T, 62, 2)
    coefficients: Floats  # (T, 52)
    text: str = ""
    latents: NDArray[np.float16] | None = None  # (T, C, h, w)
    tokens: NDArray[np.float16] | None = None  # (T, S, W)
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoClips:
    """A folder opened for reading; arrays as in the module's docstring."""

    folder: Path
    side: int
    clips: tuple[ClipEntry, ...]
    frames: NDArray[np.uint8]
    latents: NDArray[np.float16] | None
    tokens: NDArray[np.float16] | None
    log_power: NDArray[np.float16]
    samples: NDArray[np.int16]
    marks: Floats
    coefficients: Floats

    def __len__(self) -> int:
        return len(self.clips)

    def sound(self, clip: ClipEntry) -> Floats:
        """(640 T,) samples of ``clip``, full scale ±1."""
        part = self.samples[clip.first * SAMPLES_PER_FRAME :][: clip.frames * SAMPLES_PER_FRAME]
        return part.astype(np.float32) / 32767.0


def lip_gaps(marks: Floats) -> Floats:
    """Landmarks (..., 62, 2) → (...) lip gaps in eye-corner distances."""
    gap, unit = (np.linalg.norm(np.diff(marks[..., p, :], axis=-2)[..., 0, :], axis=-1)
                 for p in (INNER_LIPS, EYES))  # fmt: skip
    return np.asarray(gap / np.maximum(unit, 1e-6), np.float32)


def load_clips(folder: Path) -> VideoClips:
    """Open ``folder``. Raises ``ValueError`` if a file is missing or has the wrong length."""
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no {INDEX}: expected a folder of `fada dataset build`")
    index = json.loads((folder / INDEX).read_text())
    clips = tuple(ClipEntry(**entry) for entry in index["clips"])
    frames = sum(clip.frames for clip in clips)
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, rows in _ROWS.items():
        path = folder / f"{name}.npy"
        if name in _OPTIONAL and not path.is_file():
            continue
        if not path.is_file():
            raise ValueError(f"{folder} holds no {path.name}: it was not finished")
        arrays[name] = np.load(path, mmap_mode="r")
        if len(arrays[name]) != rows * frames:
            raise ValueError(f"{path} holds {len(arrays[name])} rows, expected {rows * frames}")
    optional = {name: arrays.pop(name, None) for name in _OPTIONAL}
    return VideoClips(folder, index["side"], clips, **optional, **arrays)  # type: ignore[arg-type]


def write_clips(folder: Path, pieces: Iterable[ClipPiece], *, frames: int, side: int) -> VideoClips:
    """Write ``pieces`` of ``frames`` frames in all to ``folder``, one at a time.

    The index is written last, atomically: a folder with an index is complete. Raises
    ``ValueError`` if the pieces have more or fewer frames, or a piece's parts disagree.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    arrays: dict[str, NDArray[Any]] = {
        "frames": _mapped(folder / "frames.npy", (frames, side, side, 3), np.uint8),
        "log_power": _mapped(folder / "log_power.npy", (frames * 4, SPECTRUM_BINS), np.float16),
        "samples": _mapped(folder / "samples.npy", (frames * SAMPLES_PER_FRAME,), np.int16),
        "marks": _mapped(folder / "marks.npy", (frames, len(LANDMARK_INDEX), 2), np.float32),
        "coefficients": _mapped(folder / "coefficients.npy", (frames, ACTION_COUNT), np.float32),
    }
    for name in _OPTIONAL:
        (folder / f"{name}.npy").unlink(missing_ok=True)
    clips: list[ClipEntry] = []
    first = 0
    for piece in pieces:
        count = len(piece.frames)
        extra = {"latents": piece.latents, "tokens": piece.tokens}
        given = {name: rows for name, rows in extra.items() if rows is not None}
        if not clips:
            for name, rows in given.items():
                shape = (frames, *rows.shape[1:])
                arrays[name] = _mapped(folder / f"{name}.npy", shape, np.float16)
        _check(piece, side)
        if given.keys() != arrays.keys() & set(_OPTIONAL):
            raise ValueError(f"{piece.name} has {sorted(given)}, unlike the first clip")
        if first + count > frames:
            raise ValueError(f"{first + count} frames or more, expected {frames}")
        content: dict[str, NDArray[Any]] = {
            "frames": piece.frames,
            "log_power": log_power(piece.samples),
            "samples": np.rint(piece.samples.clip(-1, 1) * 32767.0).astype(np.int16),
            "marks": piece.marks,
            "coefficients": piece.coefficients,
            **given,
        }
        for name, rows in content.items():
            arrays[name][first * _ROWS[name] :][: len(rows)] = rows
        clips.append(ClipEntry(piece.name, first, count, piece.text, scores=piece.scores))
        first += count
    if first != frames:
        raise ValueError(f"{first} frames, expected {frames}")
    del arrays  # flushes the memory maps
    save_index(folder, side, clips)
    return load_clips(folder)


def pieces_of(clips: VideoClips) -> Iterator[ClipPiece]:
    """The clips of a folder, to be written into another one."""
    for clip in clips.clips:
        yield ClipPiece(
            name=clip.name,
            frames=clips.frames[clip.span],
            samples=clips.sound(clip),
            marks=clips.marks[clip.span],
            coefficients=clips.coefficients[clip.span],
            text=clip.text,
            latents=None if clips.latents is None else clips.latents[clip.span],
            tokens=None if clips.tokens is None else clips.tokens[clip.span],
            scores=clip.scores,
        )


def save_index(folder: Path, side: int, clips: Iterable[ClipEntry]) -> None:
    """Write ``clips.json`` atomically."""
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps({"side": side, "clips": [asdict(c) for c in clips]}, indent=1))
    partial.replace(folder / INDEX)


def _mapped(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _check(piece: ClipPiece, side: int) -> None:
    count = len(piece.frames)
    expected: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        "frames": (piece.frames, (count, side, side, 3)),
        "samples": (piece.samples, (count * SAMPLES_PER_FRAME,)),
        "marks": (piece.marks, (count, len(LANDMARK_INDEX), 2)),
        "coefficients": (piece.coefficients, (count, ACTION_COUNT)),
    }
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{piece.name}: {name} has shape {array.shape}, expected {shape}")
