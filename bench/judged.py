"""Finished videos for judges who do not know what is what, and how they judged.

    python bench/judged.py pairs    --beside CHECKOUT --portraits P… --speech S… --out DIR
    python bench/judged.py emotions --portraits P… --speech S… --out DIR [--strength 0.6]
    python bench/judged.py score    --out DIR --answers FILE

``pairs`` makes a video of every portrait and speech by this checkout and by another one, shows them
one above the other in a random order (``DIR/shown``: frames as a picture, and a silent video), and
asks which of the two faces is more alive and natural. ``emotions`` makes three silent seconds of
every portrait in each of seven classes. ``DIR/key.json`` has what was shown; ``answers`` has lines
such as ``pair-03-1 A`` or ``clip-12 sad``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from model.motion.emotions import EMOTIONS
from model.types import FPS

HERE = Path(__file__).parents[1]
CLASSES = ("neutral", *EMOTIONS)
SECONDS = 3.0
WIDTH = 1792  # pixels of a picture that is shown
_ANIMATE = "from fada.cli import main; main()"

Picture = NDArray[Any]  # (height, width, 3) uint8


def make_pairs(args: argparse.Namespace) -> dict[str, str]:
    """``pair-PP-S``: which half, A above or B below, is this checkout's."""
    rng = np.random.default_rng(args.seed)
    key = {}
    for p, portrait in enumerate(args.portraits):
        for s, speech in enumerate(args.speech):
            new, old = (
                animate(checkout, portrait, speech, ["--seed", str(p)])
                for checkout in (HERE, args.beside.resolve())
            )
            name, below = f"pair-{p:02d}-{s}", bool(rng.integers(2))
            key[name] = "B" if below else "A"
            show(args.out / "shown" / name, [old, new] if below else [new, old], columns=8)
    return key


def make_emotions(args: argparse.Namespace) -> dict[str, str]:
    """``clip-NN``: its class. Clips of all portraits and classes in a random order."""
    rng = np.random.default_rng(args.seed)
    wanted = [(p, c) for p in range(len(args.portraits)) for c in CLASSES]
    key = {}
    for i, chosen in enumerate(rng.permutation(len(wanted))):
        portrait, emotion = wanted[chosen]
        speech = args.speech[portrait % len(args.speech)]
        options = ["--emotion", emotion, "--emotion-strength", str(args.strength), "--seed", str(i)]
        frames = animate(HERE, args.portraits[portrait], speech, options)
        key[f"clip-{i:02d}"] = emotion
        show(args.out / "shown" / f"clip-{i:02d}", [frames[: round(SECONDS * FPS)]], columns=4)
    return key


def animate(checkout: Path, portrait: Path, speech: Path, options: list[str]) -> list[Picture]:
    """The frames of `fada animate`, (side, side, 3) RGB, by the code of ``checkout``."""
    roots = f"{checkout}:{checkout / 'clients/python'}"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made.mp4")
        subprocess.run(
            [sys.executable, "-c", _ANIMATE, "animate", str(portrait.resolve()),
             str(speech.resolve()), "-o", str(made), *options],
            check=True, cwd=checkout, env=os.environ | {"PYTHONPATH": roots},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with av.open(str(made)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def show(to: Path, videos: list[list[Picture]], *, columns: int) -> None:
    """Write two rows of evenly spaced frames of each video as a picture, and all as one video."""
    to.parent.mkdir(parents=True, exist_ok=True)
    side = (WIDTH // columns,) * 2
    halves = []
    for frames in videos:
        spaced = np.linspace(0, len(frames) - 1, 2 * columns).round().astype(int)
        tiles = [cv2.resize(frames[i], side, interpolation=cv2.INTER_AREA) for i in spaced]
        halves += [np.hstack(tiles[:columns]), np.hstack(tiles[columns:])]
        halves.append(np.full((8, side[0] * columns, 3), 255, np.uint8))
    cv2.imwrite(str(to.with_suffix(".jpg")), np.vstack(halves)[..., ::-1])
    with av.open(str(to.with_suffix(".mp4")), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.height, stream.width = videos[0][0].shape[0], videos[0][0].shape[1] * len(videos)
        stream.pix_fmt = "yuv420p"
        for beside in zip(*videos, strict=True):
            frame = av.VideoFrame.from_ndarray(np.hstack(beside), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def score(out: Path, answers: Path) -> Iterator[str]:
    """Lines: pairs in which the new video was chosen, classes that were recognised."""
    key: dict[str, str] = json.loads((out / "key.json").read_text())
    given = dict(line.split()[:2] for line in answers.read_text().splitlines() if line.strip())
    if unknown := sorted(given.keys() - key.keys()):
        raise ValueError(f"answers name {unknown[0]}, which {out / 'key.json'} does not")
    pairs = [name for name in given if name.startswith("pair")]
    if pairs:
        wins, count = sum(given[name] == key[name] for name in pairs), len(pairs)
        chance = sum(Fraction(comb(count, k), 2**count) for k in range(wins, count + 1))
        yield f"new chosen in {wins} of {count} pairs (by chance p = {float(chance):.2g})"
        portraits = sorted({name.rsplit("-", 1)[0] for name in pairs})
        most = [
            sum(given[n] == key[n] for n in pairs if n.startswith(p)) * 2
            > sum(n.startswith(p) for n in pairs)
            for p in portraits
        ]
        yield f"new chosen more often for {sum(most)} of {len(most)} portraits"
    clips = [name for name in given if name.startswith("clip")]
    for true in CLASSES if clips else ():
        said = Counter(given[name] for name in clips if key[name] == true)
        as_what = ", ".join(f"{what} {n}" for what, n in said.most_common())
        yield f"{true}: {said[true]} of {said.total()} recognised ({as_what})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pairs", "emotions", "score"))
    parser.add_argument("--portraits", type=Path, nargs="+")
    parser.add_argument("--speech", type=Path, nargs="+")
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument("--strength", type=float, default=0.6)
    parser.add_argument("--seed", type=int, help="of the order; random if not given")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    args = parser.parse_args()
    if args.what == "score":
        print(*score(args.out, args.answers), sep="\n")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    key = make_pairs(args) if args.what == "pairs" else make_emotions(args)
    (args.out / "key.json").write_text(json.dumps(key, indent=1))


if __name__ == "__main__":
    main()
