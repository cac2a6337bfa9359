"""Retracking: figures of finished MP4s, tracked again from their pixels.

``bench/retracking.py --data GRID --speech SPEECH --portraits DIR --out DIR``

Makes ten videos as `fada animate` does, each of another portrait and another voice: six unseen
ones, and espeak-ng in four languages other than English. Then it tracks the face in each MP4 and
prints how the tracked lip gap and `jawOpen` correlate with the generated motion (the effect of
renderer, codec and tracker) and, where phones are known, the shares of `fada evaluate` (everything
together). The first line is a real speaker, tracked in the same way. ``sheet.jpg`` in the folder
shows all.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import cv2
import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from bench.contact_sheet import row
from fada.local import LocalClient
from media.footage import open_footage
from model.motion.rollout import roll_out
from model.pipeline import AvatarPipeline
from model.portrait.face_tracker import Face, FaceTracker
from model.portrait.image import load_picture
from model.types import SAMPLE_RATE, Floats
from server.settings import Settings
from server.worker.pipelines import load_pipelines
from training.data.corpus import LipGap, load_grid
from training.data.phones import Phone, openness
from training.evaluation.evaluate import HeldOut, held_out_set
from training.evaluation.metrics import (
    JAW,
    closed_share,
    correlation,
    gaps_of,
    open_share,
    silence_share,
)

SEED = 7
REFUSED = "liveavatar_dwarven_blacksmith.jpg"  # a cartoon in whose face no lips are made out
ENGLISH_VOICES = 6
FOREIGN = {
    "de": "Guten Morgen! Wir bauen heute Abend ein Brot mit Butter, Pflaumen und Mohn.",
    "es": "Buenos días, ¿puedes mostrarme el camino más bonito hasta la plaza mayor?",
    "fr": "Bonjour, je voudrais une baguette, un petit pain au beurre et deux pommes.",
    "cmn": "你好，我们明天早上八点半在公园门口见面，别忘了带面包和苹果。",
}


def tracked_mouth(file: Path, tracker: FaceTracker) -> Floats:
    """(T, 2) lip gap, in eye-corner distances, and `jawOpen`, tracked in a video."""
    mouths, face = [], None
    for _, picture in open_footage(file).pictures():
        face = tracker.find(picture) if face is None else tracker.follow(picture, face)
        mouths.append((_gap(face), face.coefficients[JAW]))
    return np.array(mouths, np.float32)


def _gap(face: Face) -> float:
    points = face.landmarks[:, :2]
    eyes = np.linalg.norm(points[33] - points[263])
    return float(np.linalg.norm(points[13] - points[14]) / eyes)


def sounds(tests: HeldOut, folder: Path) -> dict[str, list[Phone] | None]:
    """Write the voices to ``folder`` as NAME.wav, 16 kHz. Returns their phones, None if unknown."""
    phones: dict[str, list[Phone] | None] = {}
    spread = tests.voices[:: max(1, len(tests.voices) // ENGLISH_VOICES)][:ENGLISH_VOICES]
    for i, speech in enumerate(spread):
        soundfile.write(folder / f"en{i}.wav", speech.samples, SAMPLE_RATE)
        phones[f"en{i}"] = speech.phones
    for language, text in FOREIGN.items():
        file = folder / f"{language}.wav"
        subprocess.run(["espeak-ng", "-v", language, "-w", str(file), text], check=True)
        samples, rate = soundfile.read(file, dtype="float32")
        soundfile.write(file, soxr.resample(samples, rate, SAMPLE_RATE), SAMPLE_RATE)
        phones[language] = None
    return phones


def generated_mouth(
    pipeline: AvatarPipeline, portrait: Path, sound: Path, *, lip_gap: LipGap
) -> Floats:
    """(T, 2) lip gap and `jawOpen` of the motion that ``pipeline`` generates."""
    features = pipeline.space.encode_reference(load_picture(portrait.read_bytes())).features
    samples = soundfile.read(sound, dtype="float32")[0]
    known = pipeline.metadata
    motion = roll_out(
        pipeline, [samples], [features], seeds=[SEED], guidance=known.guidance, steps=known.steps
    )
    mouth = np.stack([gaps_of(motion, lip_gap)[0], motion[0][:, JAW]], axis=1)
    return mouth.clip(0)  # rendered lips do not overlap


def agreement(generated: Floats, tracked: Floats) -> tuple[float, float]:
    """r and slope of ``tracked`` on ``generated``, (T,) each."""
    slope = np.cov(generated, tracked)[0, 1] / generated.var(ddof=1)
    return correlation(generated, tracked), float(slope)


def shares(gaps: list[Floats], phones: list[list[Phone]]) -> str:
    """The figures that need phones, over several videos, as text."""
    wanted = [openness(p, len(g)) for g, p in zip(gaps, phones, strict=True)]
    return (
        f"phones r {correlation(np.concatenate(gaps), np.concatenate(wanted)):.2f}  "
        f"/p b m/ {closed_share(gaps, phones):.2f}  "
        f"open vowels {open_share(gaps, phones):.2f}  silence {silence_share(gaps, phones):.2f}"
    )


def real_shares(data: Path, tests: HeldOut) -> str:
    """`shares` of the held-out clips' real speaker, from the tracked lip gap."""
    grid = load_grid(data)
    by_sound = {s.tobytes(): gap for s, gap in zip(grid.samples, grid.lip_gap, strict=True)}
    gaps = [by_sound[clip.samples.tobytes()] for clip in tests.clips]
    return shares(gaps, [clip.phones for clip in tests.clips])


def pictures(folder: Path, count: int) -> list[Path]:
    """``count`` portraits spread over ``folder``, without its invalid inputs."""
    found = [p for p in folder.rglob("*") if p.suffix in (".jpg", ".png") and p.name != REFUSED]
    good = sorted(p for p in found if p.parent.name != "bad_inputs")
    return good[:: max(1, len(good) // count)][:count]


def _text(agreements: list[tuple[float, float]]) -> str:
    (r, slope), (jaw_r, jaw_slope) = agreements
    return f"gap r {r:.2f} × {slope:.2f}  jaw r {jaw_r:.2f} × {jaw_slope:.2f}"


def main() -> None:
    """Make and track the videos; print the figures; write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--speech", "--portraits", "--out"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tests = held_out_set(args.data, args.speech, clips=30, voices=40)
    print(f"real speaker, {len(tests.clips)} clips: {real_shares(args.data, tests)}")
    phones = sounds(tests, args.out)
    settings, tracker = Settings(), FaceTracker()
    pipeline = next(iter(load_pipelines(settings).values()))
    client = LocalClient(settings)
    videos, gaps, agreements = [], [], []
    for portrait, name in zip(pictures(args.portraits, len(phones)), tqdm(phones), strict=True):
        sound, video = args.out / f"{name}.wav", args.out / f"{name}.mp4"
        client.animate(portrait, sound, video, seed=SEED)
        generated = generated_mouth(pipeline, portrait, sound, lip_gap=tests.lip_gap)
        tracked = tracked_mouth(video, tracker)
        frames = min(len(generated), len(tracked))
        pairs = zip(generated[:frames].T, tracked[:frames].T, strict=True)
        agreements.append([agreement(*pair) for pair in pairs])
        print(
            f"{name:>4} {portrait.stem:<42} {_text(agreements[-1])}  std {tracked[:, 0].std():.3f}",
            flush=True,
        )
        videos.append(video)
        gaps.append(tracked[:, 0])
    print(f"against the generated motion, medians: {_text(np.median(agreements, axis=0).tolist())}")
    client.close()
    known = [(gap, p) for gap, p in zip(gaps, phones.values(), strict=True) if p is not None]
    print(f"voices with known phones: {shares([g for g, _ in known], [p for _, p in known])}")
    sheet = np.vstack([row(v, 0.4, 3.0, columns=12, side=160) for v in videos])
    cv2.imwrite(str(args.out / "sheet.jpg"), sheet[..., ::-1])


if __name__ == "__main__":
    main()
