"""How far drawn lips and chin move with `jawOpen`, beside a real speaker's.

    python bench/jaw.py --data GRID --portraits DIR

The same coefficients, of frames spread over GRID's clips, are drawn on frontal portraits, and on a
frame of the speaker himself, which comes first. Lips and chin are regressed on `jawOpen`, in
distances of the outer eye corners, in the head's own frame (the speaker's head nods as he opens his
mouth): as tracked in the real frames, as the renderer's mesh moves, and as tracked again in what is
drawn. The tracker's gain on `jawOpen` is measured on drawn frames and on real ones. Intervals hold
95 % of bootstrap samples, of stretches or of portraits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from bench.retracking import pictures
from model.motion.space import MotionSpace
from model.portrait.blendshapes import ABSOLUTE, ACTIONS
from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.image import load_picture
from model.rendering.face_model import STABLE, face_basis, fit_similarity
from model.rendering.renderer import PortraitRenderer
from model.types import Floats

OF_SPEAKER = Path(__file__).parents[1] / "docs" / "examples" / "grid_s1.jpg"
JAW = ACTIONS.index("jawOpen")
POINTS = {"upper lip": 13, "lower lip": 14, "chin": 152}
STILL = np.zeros(6, np.float32)
MOST_TURN = np.deg2rad(10.0)  # of a portrait that counts as frontal
CROP_SIDE = 384  # pixels to which GRID's 96 pixel crops are enlarged for the tracker
BOOTSTRAPS, PARTS = 1000, 8
GRID_PICTURE = np.array([360.0, 288.0, 360.0], np.float32)  # landmarks are shares of it
Slopes = NDArray[np.float64]  # (groups, 3): of each of POINTS


def heights(landmarks: Floats) -> Floats:
    """(N, 3) how low each of `POINTS` is in the head's own frame, from landmarks (N, 478, 3)."""
    shared, points = face_basis().canonical[STABLE], list(POINTS.values())
    rows = []
    for face in landmarks:
        scale, turn, shift = fit_similarity(shared, face[STABLE])
        rows.append(((face[points] - shift) @ turn / scale)[:, 1])
    return np.array(rows)


def slope(x: Floats, y: Floats) -> NDArray[np.float64]:
    """Least-squares slopes of ``y`` (N, K) on ``x`` (N,)."""
    seen = ~np.isnan(y).any(axis=1)
    x, y = x[seen].astype(np.float64), y[seen]
    centred = x - x.mean()
    return np.asarray(centred @ (y - y.mean(axis=0)) / (centred @ centred))


def spread(groups: NDArray[np.float64]) -> str:
    """Mean over groups (G,) and its interval."""
    rng = np.random.default_rng(0)
    drawn = groups[rng.integers(0, len(groups), (BOOTSTRAPS, len(groups)))].mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{groups.mean():.3f} ({low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class RealFrames:
    """N frames of GRID's clips, tracked: ``landmarks`` (N, 478, 3), ``coefficients`` (N, 52)."""

    landmarks: Floats
    coefficients: Floats

    @classmethod
    def of(cls, data: Path) -> RealFrames:
        with np.load(data / "landmarks478_sample.npz") as stored:
            landmarks = stored["landmarks"].astype(np.float32) * GRID_PICTURE
            return cls(landmarks, _in_order(stored["blendshapes"], data))


def crops(data: Path, count: int) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """``count`` real frames, 96 pixels wide, spread over all clips, and their stored `jawOpen`."""
    with np.load(data / "motion.npz") as stored:
        jaw, usable = _in_order(stored["blendshapes"], data)[:, JAW], stored["ok"]
    chosen = np.zeros(len(jaw), bool)
    chosen[np.linspace(0, len(jaw) - 1, count).astype(int)] = True
    with av.open(str(data / "face96.mp4")) as container:
        for row, picture in enumerate(container.decode(video=0)):
            if chosen[row] and usable[row]:
                yield picture.to_ndarray(format="rgb24"), float(jaw[row])


def _in_order(rows: NDArray[np.generic], data: Path) -> Floats:
    """(N, 52) as `ACTIONS` are ordered; what was not tracked is 0."""
    with np.load(data / "motion.npz") as stored:
        names = [str(n) for n in stored["blendshape_names"]]
    order = [names.index(action) if action in names else -1 for action in ACTIONS]
    return np.where(np.array(order) < 0, 0.0, rows[:, order]).astype(np.float32)


def frontal(space: MotionSpace, files: Sequence[Path]) -> Iterator[tuple[str, PortraitRenderer]]:
    """Renderers of those portraits that look ahead."""
    for file in files:
        reference = space.encode_reference(load_picture(file.read_bytes()))
        renderer = space.decoder(reference, 512, "portrait")
        if np.arccos(np.clip(renderer._shape.rotation[2, 2], -1.0, 1.0)) < MOST_TURN:
            yield file.stem, renderer


def mouth_only(renderer: PortraitRenderer, coefficients: Floats) -> Floats:
    """(N, 52): lips and jaw as in ``coefficients``, everything else at rest."""
    return np.where(ABSOLUTE, coefficients, renderer.rest).astype(np.float32)


def retrack(
    tracker: FaceTracker, frames: Iterable[NDArray[np.uint8]]
) -> tuple[Floats, NDArray[np.float64]]:
    """`heights` (N, 3) and `jawOpen` (N,), tracked anew; NaN where no face is found."""
    places = np.full((0, len(POINTS)), np.nan)
    jaws = []
    for picture in frames:
        try:
            face = tracker.find(picture)
            row, jaw = heights(face.landmarks[None]), float(face.coefficients[JAW])
        except NoFaceError:
            row, jaw = np.full((1, len(POINTS)), np.nan), np.nan
        places = np.concatenate([places, row])
        jaws.append(jaw)
    return places, np.array(jaws)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--data", "--portraits"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--count", type=int, default=16, help="portraits")
    parser.add_argument("--frames", type=int, default=100, help="drawn and tracked of each")
    args = parser.parse_args()
    real, tracker, space = RealFrames.of(args.data), FaceTracker(), MotionSpace()
    jaw = real.coefficients[:, JAW]
    true = _in_parts(jaw, heights(real.landmarks))
    _report("real frames", true)

    few = np.linspace(0, len(jaw) - 1, args.frames).astype(int)
    moved, again, gains = [], [], []
    for name, renderer in frontal(space, [OF_SPEAKER, *pictures(args.portraits, args.count)]):
        actions = mouth_only(renderer, real.coefficients)
        mesh = np.stack([renderer._shape.deform(one) for one in actions])
        moved.append(slope(jaw, mesh[:, list(POINTS.values()), 1]))
        places, tracked = retrack(tracker, (renderer.render(actions[i], STILL) for i in few))
        again.append(slope(jaw[few], places))
        gains.append(slope(jaw[few], tracked[:, None])[0])
        print(f"  {name}: mesh {_row(moved[-1])}; tracked {_row(again[-1])}, gain {gains[-1]:.2f}")
    _report("drawn, the mesh", np.array(moved[1:]), true)
    _report("drawn, tracked again", np.array(again[1:]), true)
    print(
        f"gain: jawOpen tracked in what is drawn, on jawOpen drawn: {spread(np.array(gains[1:]))}"
    )

    pictured, stored = zip(*crops(args.data, 8 * args.frames), strict=True)
    enlarged = (
        cv2.resize(c, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_CUBIC) for c in pictured
    )
    places, tracked = retrack(tracker, enlarged)
    known = np.array(stored)
    _report("real frames, tracked again", _in_parts(known, places), true)
    gain = _in_parts(known, tracked[:, None])[:, 0]
    print(f"gain: jawOpen tracked in real frames, on jawOpen as stored: {spread(gain)}")


def _in_parts(jaw: Floats, values: Floats) -> Slopes:
    """Slopes (8, K) of values (N, K) in eight stretches of frames."""
    parts = np.array_split(np.arange(len(jaw)), PARTS)
    return np.array([slope(jaw[part], values[part]) for part in parts])


def _row(values: NDArray[np.float64]) -> str:
    return " ".join(f"{v:.3f}" for v in values)


def _report(name: str, slopes: Slopes, over: Slopes | None = None) -> None:
    """Slopes of each point, and their ratio to the real ones."""
    for k, point in enumerate(POINTS):
        ratio = "" if over is None else f"; of the real {spread(slopes[:, k] / over[:, k].mean())}"
        print(f"{name}: {point} {spread(slopes[:, k])}{ratio}", flush=True)


if __name__ == "__main__":
    main()
