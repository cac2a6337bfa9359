"""Pairs for a blind choice between two checkouts, and how it came out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import comb
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from bench.mouths.drawing import Shot, Wish, draw
from bench.mouths.sheets import EYES, FACE, MOUTH, Picture, box, column, cut, row

FRAMES, RATE = 50, 25
OPENINGS, TURNS = (0.05, 0.15, 0.30), (-12.0, 0.0, 12.0)  # eye-corner distances, degrees


def make_pairs(
    new: Path, old: Path, portraits: Sequence[Path], *, latents: NDArray[np.float32], out: Path
) -> None:
    """Write stills and clips of both checkouts, side by side in a random order.

    ``out/pairs`` has what is judged; ``out/key.json`` which side is new. ``latents`` (T, 58) is the
    motion of the clips, two seconds for each portrait.
    """
    rng = np.random.default_rng()
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    shots: list[Shot] = []
    for i, portrait in enumerate(portraits):
        still: Wish = {"opening": OPENINGS[i % 3], "yaw": TURNS[(i // 3) % 3]}
        start = (i * FRAMES) % max(1, len(latents) - FRAMES)
        clip: list[Wish] = [{"latents": one} for one in latents[start : start + FRAMES]]
        shots.append((portrait, [{}, still, {"blink": 1.0}, *clip]))
    key = {}
    for i, pair in enumerate(zip(draw(new, shots), draw(old, shots), strict=True)):
        mouth, eyes, face = (box(pair[0][0], part, like=pair[0][0]) for part in (MOUTH, EYES, FACE))
        stills = [row([cut(d[1].picture, mouth), cut(d[2].picture, eyes)]) for d in pair]
        clips = [[cut(one.picture, face, 1.5) for one in d[3:]] for d in pair]
        strips = [[cut(one.picture, mouth, 2.0) for one in d[3::2]] for d in pair]
        for kind in ("still", "clip"):
            name = f"{kind}-{i:02d}"
            swapped = bool(rng.integers(2))
            key[name] = "B" if swapped else "A"
            order = (1, 0) if swapped else (0, 1)
            if kind == "still":
                _write(out / "pairs" / f"{name}.png", column([stills[k] for k in order]))
                continue
            halves = [column([row(strips[k][s : s + 9]) for s in (0, 9, 18)]) for k in order]
            _write(out / "pairs" / f"{name}.png", column(halves))
            both = [row(list(pair)) for pair in zip(*(clips[k] for k in order), strict=True)]
            _video(out / "pairs" / f"{name}.mp4", both)
    (out / "key.json").write_text(json.dumps(key, indent=1))


def score(out: Path, answers: Path) -> Iterator[str]:
    """Lines: how often the new one was chosen. ``answers`` has lines like ``still-03 A``."""
    key = json.loads((out / "key.json").read_text())
    given = dict(line.split()[:2] for line in answers.read_text().splitlines() if line.strip())
    if unknown := sorted(given.keys() - key.keys()):
        raise ValueError(f"answers name {unknown[0]}, expected pairs of {out / 'key.json'}")
    for kind in ("still", "clip"):
        chosen = [
            given[name] == side for name, side in key.items() if name in given and kind in name
        ]
        if chosen:
            wins, count = sum(chosen), len(chosen)
            chance = sum(Fraction(comb(count, k), 2**count) for k in range(wins, count + 1))
            yield f"{kind}s: new chosen {wins} of {count} (by chance p = {float(chance):.2g})"


def _write(path: Path, picture: Picture) -> None:
    cv2.imwrite(str(path), picture[..., ::-1])


def _video(path: Path, frames: Sequence[Picture]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "14"})
        stream.height, stream.width = (n // 2 * 2 for n in frames[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            even = np.ascontiguousarray(picture[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
