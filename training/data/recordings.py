"""Recordings at 25 frames a second, cut into clips and laid down for `corpus.load_grid`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTION_COUNT, ACTIONS
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats
from training.data.tracking import LANDMARK_INDEX, TrackedFrame

LONGEST_CLIP = 250  # frames
# Two training windows with their past at the fastest pace take 35 frames.
SHORTEST_CLIP = 50
SHAPE_EVERY = 50  # of tracked frames, one mesh of so many tells the speaker's geometry
_LEAD_S = 0.3  # of silence around a subtitle that belongs to its clip
_PAUSE_S = 1.0  # subtitles further apart than this are never of one clip
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(_TIME + r"\s*-->\s*" + _TIME)


@dataclass(frozen=True)
class RecordedTake:
    """One recording: N frames, of which only those with ``ok`` mean anything.

    Either ``points`` (N, 62, 2), in picture widths, with meshes ``shapes`` (S, 478, 3), or, of a
    capture without landmarks, ``lip_gap`` (N,) in eye-corner distances.
    """

    coefficients: Floats  # (N, 52) in the order of `ACTIONS`
    pose: NDArray[np.float64]  # (N, 3, 4)
    ok: NDArray[np.bool_]  # (N,)
    points: Floats | None = None
    shapes: Floats | None = None
    lip_gap: Floats | None = None

    def __len__(self) -> int:
        return len(self.ok)


@dataclass(frozen=True)
class Cue:
    """One subtitle."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class RecordedClip:
    """Frames ``first`` up to ``stop`` of a take and what is said in them, if that is known."""

    first: int
    stop: int
    text: str = ""


@dataclass(frozen=True)
class Recording:
    """A take with its name, its sound (16 kHz mono, 640 samples a frame) and its subtitles."""

    name: str
    take: RecordedTake
    sound: Path
    cues: Sequence[Cue] | None = None


def take_of(looks: Iterable[TrackedFrame | None]) -> RecordedTake:
    """A video's looks, 25 a second, as a take; few of their meshes are held."""
    ok: list[bool] = []
    coefficients, pose, points, shapes = [], [], [], []
    tracked = 0
    for look in looks:
        ok.append(look is not None)
        coefficients.append(np.zeros(ACTION_COUNT) if look is None else look.coefficients)
        pose.append(np.eye(3, 4) if look is None else look.pose)
        points.append(np.zeros((len(LANDMARK_INDEX), 2)) if look is None else look.points)
        if look is not None:
            if tracked % SHAPE_EVERY == 0:
                shapes.append(look.shape)
            tracked += 1
    return RecordedTake(
        np.array(coefficients, np.float32).reshape(-1, ACTION_COUNT),
        np.array(pose, np.float64).reshape(-1, 3, 4),
        np.array(ok, bool),
        np.array(points, np.float32).reshape(-1, len(LANDMARK_INDEX), 2),
        np.array(shapes, np.float32).reshape(-1, 478, 3),
    )


def read_cues(path: Path) -> list[Cue]:
    """The subtitles of a SubRip or WebVTT file. Raises ``ValueError`` when it holds none."""
    cues = []
    for block in re.split(r"\n\s*\n", path.read_text("utf-8-sig").replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        at = next((i for i, line in enumerate(lines) if _TIMES.search(line)), None)
        if at is None:
            continue
        found = _TIMES.search(lines[at])
        if found is None:
            continue
        parts = found.groups()
        text = re.sub(r"<[^>]*>", "", " ".join(lines[at + 1 :])).strip()
        if text:
            cues.append(Cue(_seconds(parts[:4]), _seconds(parts[4:]), text))
    if not cues:
        raise ValueError(f"{path} holds no subtitle, expected SubRip (.srt) or WebVTT (.vtt)")
    return sorted(cues, key=lambda cue: cue.start_s)


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, part = (p or "0" for p in parts)
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + float(f"0.{part}")


def cut(ok: NDArray[np.bool_], cues: Sequence[Cue] | None) -> list[RecordedClip]:
    """The clips of a take: frames without a face are in none of them.

    Without ``cues``: each unbroken stretch in equal parts of at most `LONGEST_CLIP`. With them:
    what is said in one or more subtitles, whole, with up to 0.3 s of silence on both sides. What
    is shorter than `SHORTEST_CLIP` is left out.
    """
    if cues is None:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ok.astype(np.int8), [0]])))
        clips = []
        for first, stop in edges.reshape(-1, 2).tolist():
            parts = -(-(stop - first) // LONGEST_CLIP)
            borders = np.linspace(first, stop, parts + 1).round().astype(int).tolist()
            clips += [RecordedClip(a, b) for a, b in pairwise(borders)]
    else:
        clips = _said(len(ok), cues)
    return [c for c in clips if c.stop - c.first >= SHORTEST_CLIP and ok[c.first : c.stop].all()]


def _said(frames: int, cues: Sequence[Cue]) -> list[RecordedClip]:
    """Subtitles as clips; short ones join the next if there is no pause between them."""
    spans: list[RecordedClip] = []
    ends = [-np.inf, *(cue.end_s for cue in cues)]
    starts = [*(cue.start_s for cue in cues), np.inf]
    for i, cue in enumerate(cues):
        begin = max(cue.start_s - _LEAD_S, (ends[i] + cue.start_s) / 2, 0.0)
        end = min(cue.end_s + _LEAD_S, (cue.end_s + starts[i + 1]) / 2)
        first, stop = min(frames, round(begin * FPS)), min(frames, round(end * FPS))
        last = spans[-1] if spans else None
        if (
            last is not None
            and cue.start_s - ends[i] < _PAUSE_S
            and min(last.stop - last.first, stop - first) < SHORTEST_CLIP
            and stop - last.first <= LONGEST_CLIP
        ):
            spans[-1] = RecordedClip(last.first, stop, f"{last.text} {cue.text}")
        else:
            spans.append(RecordedClip(first, stop, cue.text))
    return spans


def write_folder(recordings: Sequence[Recording], folder: Path) -> list[RecordedClip]:
    """Writes the clips of all ``recordings``: ``motion.npz``, ``audio.opus`` and, of videos, a
    sample of meshes. Returns the clips, in order.

    Raises ``ValueError`` when videos and captures are mixed, or no clip is left.
    """
    captured = {r.take.lip_gap is not None for r in recordings}
    if len(captured) != 1:
        raise ValueError("videos and captures cannot share a folder: only videos have landmarks")
    chosen = [(r, clip) for r in recordings for clip in cut(r.take.ok, r.cues)]
    if not chosen:
        raise ValueError(
            f"no clip is left: none of {sum(len(r.take) for r in recordings)} frames lies in "
            f"{SHORTEST_CLIP / FPS:g} s or more without a break in the tracking"
        )
    folder.mkdir(parents=True, exist_ok=True)

    def joined(name: str) -> NDArray[np.floating]:
        parts = [getattr(r.take, name)[clip.first : clip.stop] for r, clip in chosen]
        return np.concatenate(parts).astype(np.float32)

    lengths = [clip.stop - clip.first for _, clip in chosen]
    arrays: dict[str, NDArray[np.generic]] = {
        "blendshapes": joined("coefficients"),
        "blendshape_names": np.array(ACTIONS),
        "pose": joined("pose"),
        "ok": np.ones(sum(lengths), bool),
        "clip": np.array([f"{r.name}@{clip.first / FPS:.2f}s" for r, clip in chosen]),
        "start": np.cumsum([0, *lengths[:-1]]),
        "text": np.array([clip.text for _, clip in chosen]),
    }
    if True in captured:
        arrays["lip_gap"] = joined("lip_gap")
    else:
        # widths, in x and y alike
        unit = np.ones(2, np.float32)
        arrays |= {"landmarks62_xy": joined("points"), "landmark_index": LANDMARK_INDEX}
        arrays["picture"] = unit
        shapes = [r.take.shapes for r in recordings if r.take.shapes is not None]
        _save(
            folder / "landmarks478_sample.npz",
            {"landmarks": np.concatenate(shapes), "picture": unit},
        )
    _write_sound(folder / "audio.opus", chosen)
    _save(folder / "motion.npz", arrays)
    return [clip for _, clip in chosen]


def _save(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]  # its stub has one more flag
    partial.replace(path)


def _write_sound(path: Path, chosen: Sequence[tuple[Recording, RecordedClip]]) -> None:
    """The clips' sound end to end, a clip at a time."""
    partial = path.with_suffix(".partial")
    with soundfile.SoundFile(partial, "w", SAMPLE_RATE, 1, format="OGG", subtype="OPUS") as written:
        for recording, clip in chosen:
            count = (clip.stop - clip.first) * SAMPLES_PER_FRAME
            with soundfile.SoundFile(recording.sound) as sound:
                sound.seek(clip.first * SAMPLES_PER_FRAME)
                samples = sound.read(count, dtype="float32")
            if len(samples) != count:
                raise ValueError(f"{recording.sound} ends before its motion does")
            written.write(samples)
    partial.replace(path)


def save_take(path: Path, take: RecordedTake) -> None:
    """Keeps a take for `load_take`; the file is there whole or not at all."""
    _save(path, {name: array for name, array in vars(take).items() if array is not None})


def load_take(path: Path) -> RecordedTake:
    """What `save_take` wrote."""
    with np.load(path) as data:
        return RecordedTake(**dict(data))
