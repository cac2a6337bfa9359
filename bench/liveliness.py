"""How lively the faces are: of a model's motion, and of finished videos.

    python bench/liveliness.py --speech SPEECH
    python bench/liveliness.py --videos A.mp4 B.mp4 …

The first prints tables of generated motion: activity (medians over unseen speeches), the fit of
head and brows to their own sound and to shuffled sound, blinks, and drift over ten minutes. The
reading of motion is fitted to every other speech and judged on the rest. The second tracks videos
and prints their activity, clip by clip and in the median; with 60 or more, the fit as well.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

from media.footage import open_footage
from model.models import WEIGHTS, motion_pipeline, motion_student
from model.motion.rollout import MotionOnly, roll_out
from model.portrait.blendshapes import ACTION_COUNT, from_motion, rotation_vectors
from model.portrait.face_tracker import FaceTracker
from model.types import FPS, SAMPLE_RATE, Floats
from training.data.inferred import split_speeches
from training.data.tracking import at_video_rate, track
from training.evaluation.liveliness import (
    FaceMotion,
    ProsodyFit,
    activity,
    blinks_at_phrase_ends,
    drift,
)
from training.evaluation.prosody import Prosody, prosody

SECONDS = (5.0, 40.0)  # of a speech
REST = np.full(ACTION_COUNT, 0.05, np.float32)  # a common portrait's


def unseen_speeches(folder: Path, count: int) -> list[Floats]:
    """``count`` speeches of voices that no model was trained on, spread over the collections."""
    rows = split_speeches(folder)[1]
    with (folder / "manifest.csv").open() as file:
        rows += [r for r in csv.DictReader(file) if not r["transcript"]]
    rows = [r for r in rows if SECONDS[0] <= float(r["seconds"]) <= SECONDS[1]]
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, count).round().astype(int)]
    return [soundfile.read(folder / r["file"], dtype="float32")[0] for r in chosen]


def generated(weights: Path, sounds: list[Floats]) -> list[FaceMotion]:
    """The model's motion for each sound, as in service."""
    pipeline = motion_pipeline("lively", motion_student(weights), MotionOnly(), nonverbal=True)
    known, face = pipeline.metadata, np.zeros(64, np.float32)
    face[:ACTION_COUNT] = REST
    motions = roll_out(
        pipeline,
        sounds,
        [face] * len(sounds),
        seeds=list(range(len(sounds))),
        guidance=known.guidance,
        steps=known.steps,
    )
    return [shown(motion) for motion in motions]


def shown(motion: Floats) -> FaceMotion:
    """The face that the renderer draws of ``motion`` (T, 58)."""
    coefficients, pose = from_motion(motion, REST)
    return FaceMotion(coefficients, pose[:, :3])


def tracked(video: Path, tracker: FaceTracker) -> tuple[FaceMotion, Prosody]:
    """A video's face, relative to its mean pose, and the prosody of its sound."""
    footage = open_footage(video)
    frames = [f for f in at_video_rate(track(footage.pictures(), tracker)) if f is not None]
    rotations = np.stack([f.pose[:, :3] for f in frames])
    u, _, v = np.linalg.svd(rotations.mean(0))
    turned = rotation_vectors(rotations @ (u @ v).T)
    samples = np.concatenate(list(footage.sound()))
    return FaceMotion(np.stack([f.coefficients for f in frames]), turned), prosody(samples)


def print_rows(rows: dict[str, dict[str, float]]) -> None:
    """A Markdown table, a line for each of ``rows``."""
    columns = list(next(iter(rows.values())))
    print("| | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |")
    print(flush=True)


def medians(faces: list[FaceMotion]) -> dict[str, float]:
    """The median of each figure over the clips; blinks are counted over all of them."""
    rows = [activity(face) for face in faces]
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]} | {
        "blinks/min": float(
            np.average(
                [row["blinks/min"] for row in rows], weights=[len(f.rotation) for f in faces]
            )
        )
    }


def halves(faces: list[FaceMotion], sounds: list[Prosody]) -> dict[str, float]:
    """The fit to prosody: read by one half, judged on the other."""
    fit = ProsodyFit(faces[0::2], sounds[0::2])
    return fit(faces[1::2], sounds[1::2]) | blinks_at_phrase_ends(faces[1::2], sounds[1::2])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--videos", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "motion-fast.safetensors")
    parser.add_argument("--count", type=int, default=60, help="speeches [%(default)s]")
    args = parser.parse_args()
    if args.videos:
        tracker = FaceTracker()
        found = {video.stem: tracked(video, tracker) for video in args.videos}
        faces, sounds = [f for f, _ in found.values()], [s for _, s in found.values()]
        each = {name: activity(face) for name, (face, _) in found.items()}
        print_rows({**each, "median": medians(faces)})
        if len(found) >= 60:
            print_rows({"videos": halves(faces, sounds)})
    if args.speech:
        speeches = unseen_speeches(args.speech, args.count)
        long = np.resize(np.concatenate(speeches), 600 * SAMPLE_RATE)
        silence = np.zeros(120 * SAMPLE_RATE, np.float32)
        *faces, endless, quiet = generated(args.weights, [*speeches, long, silence])
        print_rows({args.weights.stem: medians(faces[1::2]), "in silence": activity(quiet)})
        print_rows({args.weights.stem: halves(faces, [prosody(s) for s in speeches])})
        print_rows({f"{len(endless.rotation) / FPS / 60:.0f} minutes": drift(endless)})


if __name__ == "__main__":
    main()
