"""`fada track`: recordings of one speaker become a folder for `fada train --data`."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from media.footage import open_footage, sound_of
from model.portrait.face_tracker import FaceTracker
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Floats
from training.data.arkit import arkit_motion, read_arkit
from training.data.corpus import held_out
from training.data.recordings import (
    Recording,
    TrackedMotion,
    collect_motion,
    load_motion,
    read_cues,
    save_motion,
    write_folder,
)
from training.data.tracking import TrackedFrame, at_video_rate, track

CAPTURES = (".csv", ".json")
_LEAST_SHARE = 0.5  # of frames with a face, to count as a talking head


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="videos of one speaker, or ARKit captures (.csv of Live Link Face, .json)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for `fada train --data`")
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        help="subtitles (.srt, .vtt), one file for each source: transcripts and where clips begin",
    )
    parser.add_argument(
        "--audio",
        type=Path,
        nargs="+",
        help="for captures: the sound of each (any audio or video file), from its first row on",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the face tracker [%(default)s]"
    )


def run(args: argparse.Namespace) -> int:
    """Track the sources that are not tracked yet, then write the folder."""
    recordings = _recordings(args)
    clips = write_folder(recordings, args.out)
    frames = sum(clip.stop - clip.first for clip in clips)
    seen = sum(len(r.motion) for r in recordings)
    print(
        f"{args.out}: {len(clips)} clips, {frames / FPS / 60:.1f} min "
        f"({100 * frames / seen:.0f} % of what was given), "
        f"{sum(bool(c.text) for c in clips)} with text, {held_out(len(clips)).sum()} held out"
    )
    return 0


def _recordings(args: argparse.Namespace) -> list[Recording]:
    sources: list[Path] = args.sources
    captured = [source.suffix.lower() in CAPTURES for source in sources]
    if any(captured) and not all(captured):
        raise ValueError("videos and captures cannot share a folder: track them into two")
    for flag, files in (("--text", args.text), ("--audio", args.audio)):
        if files is not None and len(files) != len(sources):
            raise ValueError(f"{flag} names {len(files)} files, expected {len(sources)}")
    if any(captured) != (args.audio is not None):
        raise ValueError("--audio is needed for captures, and for captures only")
    cues = [None if args.text is None else read_cues(path) for path in args.text or sources]
    sounds: list[Path | None] = args.audio or [None] * len(sources)
    parts = args.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    tracker = None if any(captured) else FaceTracker(args.threads)
    done = []
    for source, sound, text in zip(sources, sounds, cues, strict=True):
        part = parts / part_name(source, sound)
        motion_file, sound_file = part.with_suffix(".npz"), part.with_suffix(".flac")
        if not motion_file.is_file():
            if tracker is None:
                motion = _captured(source, sound or source, sound_file)
            else:
                motion = _tracked(source, tracker, sound_file)
            save_motion(motion_file, motion)
        done.append(Recording(source.stem, load_motion(motion_file), sound_file, text))
    return done


def part_name(source: Path, sound: Path | None) -> str:
    """A name that changes with the files, so that stale tracks are never used."""
    facts = []
    for path in (source, sound):
        if path is not None:
            if not path.is_file():
                raise ValueError(f"{path} is not a file")
            status = path.stat()
            facts.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    return f"{source.stem}-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:12]}"


def _tracked(video: Path, tracker: FaceTracker, sound_file: Path) -> TrackedMotion:
    footage = open_footage(video)
    total = None if footage.duration_s is None else int(footage.duration_s * FPS)
    started = time.monotonic()
    with tqdm(total=total, desc=video.name, unit="frame") as bar:
        motion = collect_motion(_counted(at_video_rate(track(footage.pictures(), tracker)), bar))
    spent = time.monotonic() - started
    share = float(motion.ok.mean()) if len(motion) else 0.0
    if share < _LEAST_SHARE:
        raise ValueError(f"{video}: a face is seen in {100 * share:.0f} % of {len(motion)} frames")
    _write_sound(sound_file, footage.sound(), len(motion))
    print(f"{video.name}: {len(motion)} frames, {len(motion) / spent:.0f} frames/s, "
          f"a face in {100 * share:.1f} %")  # fmt: skip
    return motion


def _captured(capture: Path, sound: Path, sound_file: Path) -> TrackedMotion:
    motion = arkit_motion(read_arkit(capture))
    _write_sound(sound_file, sound_of(sound), len(motion))
    return motion


def _counted(found: Iterable[TrackedFrame | None], bar: tqdm) -> Iterator[TrackedFrame | None]:
    for frame in found:
        bar.update()
        yield frame


def _write_sound(path: Path, blocks: Iterable[Floats], frames: int) -> None:
    """Exactly ``frames`` frames of sound, padded with silence.

    Raises ``ValueError`` when more than a second is missing: sound and motion do not match.
    """
    wanted, written = frames * SAMPLES_PER_FRAME, 0
    partial = path.with_suffix(".partial")
    with soundfile.SoundFile(partial, "w", SAMPLE_RATE, 1, format="FLAC") as file:
        for block in blocks:
            piece = np.clip(block[: wanted - written], -1.0, 1.0)
            file.write(piece)
            written += len(piece)
            if written == wanted:
                break
        if wanted - written > SAMPLE_RATE:
            raise ValueError(
                f"the sound ends after {written / SAMPLE_RATE:.1f} s, "
                f"the motion after {frames / FPS:.1f} s"
            )
        file.write(np.zeros(wanted - written, np.float32))
    partial.replace(path)
