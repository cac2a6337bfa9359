"""Cut recordings into clips and write them as a folder for `training.data.corpus.load_grid`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, LANDMARKS
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats
from training.data.tracking import LANDMARK_INDEX, TrackedFrame

MAX_CLIP_FRAMES = 250  # frames
MIN_CLIP_FRAMES = 50  # two training windows with their prefix at the highest rate take 35
SHAPE_EVERY = 50  # tracked frames: one mesh of so many is kept, for the speaker's geometry
_LEAD_S = 0.3  # of silence before and after a subtitle that belongs to its clip
_PAUSE_S = 1.0  # subtitles further apart are not joined in a clip
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(_TIME + r"\s*-->\s*" + _TIME)


@dataclass(frozen=True)
class TrackedMotion:
    """N frames of a recording at 25 a second; only those with ``ok`` are valid.

    Videos have ``points`` and ``shapes``, ARKit recordings ``lip_gap``.
    """

    coefficients: Floats  # (N, 52) in the order of `ACTIONS`
    pose: NDArray[np.float64]  # (N, 3, 4)
    ok: NDArray[np.bool_]  # (N,)
    points: Floats | None = None  # (N, 62, 2) in picture widths
    shapes: Floats | None = None  # (S, 478, 3) a sample of meshes
    lip_gap: Floats | None = None  # (N,) in eye-corner distances

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
    """Frames ``first`` to ``stop`` of a recording, and their text if it is known."""

    first: int
    stop: int
    text: str = ""


@dataclass(frozen=True)
class Recording:
    """Motion with its name, its sound (16 kHz mono, 640 samples per frame) and its subtitles."""

    name: str
    motion: TrackedMotion
    sound: Path
    cues: Sequence[Cue] | None = None


def collect_motion(faces: Iterable[TrackedFrame | None]) -> TrackedMotion:
    """Collect a video's faces, 25 a second; only one mesh in `SHAPE_EVERY` is kept."""
    ok: list[bool] = []
    coefficients, pose, points, shapes = [], [], [], []
    tracked = 0
    for face in faces:
        ok.append(face is not None)
        coefficients.append(np.zeros(ACTION_COUNT) if face is None else face.coefficients)
        pose.append(np.eye(3, 4) if face is None else face.pose)
        points.append(np.zeros((len(LANDMARK_INDEX), 2)) if face is None else face.points)
        if face is not None:
            if tracked % SHAPE_EVERY == 0:
                shapes.append(face.shape)
            tracked += 1
    return TrackedMotion(
        coefficients=np.array(coefficients, np.float32).reshape(-1, ACTION_COUNT),
        pose=np.array(pose, np.float64).reshape(-1, 3, 4),
        ok=np.array(ok, bool),
        points=np.array(points, np.float32).reshape(-1, len(LANDMARK_INDEX), 2),
        shapes=np.array(shapes, np.float32).reshape(-1, LANDMARKS, 3),
    )


def read_cues(path: Path) -> list[Cue]:
    """The subtitles of a SubRip or WebVTT file. Raises ``ValueError`` if it holds none."""
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


def cut_clips(ok: NDArray[np.bool_], cues: Sequence[Cue] | None) -> list[RecordedClip]:
    """Cut a recording with valid frames ``ok`` (N,) into clips of valid frames.

    Without ``cues``, each unbroken stretch is cut into equal parts of at most `MAX_CLIP_FRAMES`.
    With them, a clip holds one or more whole subtitles with up to 0.3 s of silence on both sides.
    Clips shorter than `MIN_CLIP_FRAMES` are left out.
    """
    if cues is None:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ok.astype(np.int8), [0]])))
        clips = []
        for first, stop in edges.reshape(-1, 2).tolist():
            parts = -(-(stop - first) // MAX_CLIP_FRAMES)
            borders = np.linspace(first, stop, parts + 1).round().astype(int).tolist()
            clips += [RecordedClip(a, b) for a, b in pairwise(borders)]
    else:
        clips = _subtitle_clips(len(ok), cues)
    return [c for c in clips if c.stop - c.first >= MIN_CLIP_FRAMES and ok[c.first : c.stop].all()]


def _subtitle_clips(frames: int, cues: Sequence[Cue]) -> list[RecordedClip]:
    """Subtitles as clips; short ones are joined with the next unless there is a pause."""
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
            and min(last.stop - last.first, stop - first) < MIN_CLIP_FRAMES
            and stop - last.first <= MAX_CLIP_FRAMES
        ):
            spans[-1] = RecordedClip(last.first, stop, f"{last.text} {cue.text}")
        else:
            spans.append(RecordedClip(first, stop, cue.text))
    return spans


def write_folder(recordings: Sequence[Recording], folder: Path) -> list[RecordedClip]:
    """Write the clips of all ``recordings``: ``motion.npz``, ``audio.opus`` and, for videos, a
    sample of meshes. Returns the clips in order.

    Raises ``ValueError`` if videos and ARKit recordings are mixed, or if no clip is left.
    """
    arkit = {r.motion.lip_gap is not None for r in recordings}
    if len(arkit) != 1:
        raise ValueError(
            "videos and ARKit recordings cannot share a folder: only videos have landmarks"
        )
    chosen = [(r, clip) for r in recordings for clip in cut_clips(r.motion.ok, r.cues)]
    if not chosen:
        raise ValueError(
            f"no clip is left of {sum(len(r.motion) for r in recordings)} frames, expected "
            f"{MIN_CLIP_FRAMES / FPS:g} s or more without a break in the tracking"
        )
    folder.mkdir(parents=True, exist_ok=True)

    def joined(name: str) -> NDArray[np.floating]:
        parts = [getattr(r.motion, name)[clip.first : clip.stop] for r, clip in chosen]
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
    if True in arkit:
        arrays["lip_gap"] = joined("lip_gap")
    else:
        unit = np.ones(2, np.float32)  # landmarks are in picture widths, in x and y alike
        arrays |= {"landmarks62_xy": joined("points"), "landmark_index": LANDMARK_INDEX}
        arrays["picture"] = unit
        shapes = [r.motion.shapes for r in recordings if r.motion.shapes is not None]
        _save(
            folder / "landmarks478_sample.npz",
            {"landmarks": np.concatenate(shapes), "picture": unit},
        )
    _write_sound(folder / "audio.opus", chosen)
    _save(folder / "motion.npz", arrays)
    return [clip for _, clip in chosen]


def _save(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]  # the stub has a flag besides
    partial.replace(path)


def _write_sound(path: Path, chosen: Sequence[tuple[Recording, RecordedClip]]) -> None:
    """Write the clips' sound end to end, a clip at a time."""
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


def save_motion(path: Path, motion: TrackedMotion) -> None:
    """Write ``motion`` for `load_motion`, atomically."""
    _save(path, {name: array for name, array in vars(motion).items() if array is not None})


def load_motion(path: Path) -> TrackedMotion:
    """Read what `save_motion` wrote."""
    with np.load(path) as data:
        return TrackedMotion(**dict(data))
