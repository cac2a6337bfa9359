"""Draw portraits with the renderer of any checkout, in a process of its own.

A `Wish` names what to draw; `draw` returns pictures and the moved landmarks. As a script, this file
runs with another checkout's packages: it may only use what both have.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parents[2]
MOUTH_RING = np.array(  # the inner lips, as `model.rendering.face_model` has them
    [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95]
)
STILL = np.zeros(6, np.float32)
# Actions for an opening, in proportion: a jaw that falls, lips that uncover some teeth.
OPENING = {"jawOpen": 1.0, "mouthLowerDown": 0.3, "mouthUpperUp": 0.15}
BANK = 160  # mouth shapes to choose from when a contour is imitated

Wish = dict[str, Any]  # one of the keys that `_motion` reads, and pose angles in degrees
Shot = tuple[Path, list[Wish]]  # a portrait and what it should do


@dataclass(frozen=True)
class Drawn:
    """``picture`` (H, W, 3) RGB, ``points`` (478, 2) in its pixels, CPU times."""

    picture: NDArray[np.uint8]
    points: NDArray[np.float32]
    mouth_ms: float
    frame_ms: float


def draw(checkout: Path, shots: Sequence[Shot], *, size: int = 512) -> list[list[Drawn]]:
    """Each shot's wishes as ``checkout``'s renderer draws them, frames of ``size`` pixels."""
    with tempfile.TemporaryDirectory() as folder:
        asked, made = Path(folder, "shots"), Path(folder, "drawn")
        asked.write_bytes(pickle.dumps(([(str(p.resolve()), w) for p, w in shots], size)))
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, __file__, str(asked), str(made)],
            check=True,
            cwd=checkout,
            env=environment,
        )
        drawn = pickle.loads(made.read_bytes())
    return [[Drawn(*one) for one in shot] for shot in drawn]


def _draw_all(shots: list[tuple[str, list[Wish]]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    from model.motion.space import MotionSpace
    from model.portrait.image import load_picture

    space = MotionSpace()
    for portrait, wishes in shots:
        reference = space.encode_reference(load_picture(Path(portrait).read_bytes()))
        renderer = space.decoder(reference, size, "portrait")
        drawer = _Drawer(renderer)
        yield [drawer(wish) for wish in wishes]
        print(Path(portrait).stem, file=sys.stderr, flush=True)


class _Drawer:
    """One portrait; measures the CPU time of frames and of their mouths."""

    def __init__(self, renderer: Any) -> None:
        from model.portrait.blendshapes import ABSOLUTE, ACTIONS

        self._renderer, self._names = renderer, list(ACTIONS)
        self._neutral = np.where(ABSOLUTE, 0.0, renderer.rest).astype(np.float32)
        self._eyes = float(np.linalg.norm(np.subtract(*self._points(self._neutral)[[33, 263]])))
        self._spent = 0.0
        self._bank: list[tuple[Any, Any]] = []
        self._rings: NDArray[np.complex128]
        drawn = renderer._mouth.draw

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.thread_time()
            drawn(*args, **kwargs)
            self._spent = time.thread_time() - start

        object.__setattr__(renderer._mouth, "draw", timed)

    def __call__(self, wish: Wish) -> tuple[Any, ...]:
        actions, pose = self._motion(wish)
        self._spent, start = 0.0, time.thread_time()
        picture = self._renderer.render(actions, pose)
        whole = time.thread_time() - start
        return picture, self._points(actions, pose), 1000.0 * self._spent, 1000.0 * whole

    def _motion(self, wish: Wish) -> tuple[Any, Any]:
        pose = STILL.copy()
        angles = [wish.get(name, 0.0) for name in ("pitch", "yaw", "roll")]
        pose[:3] = np.deg2rad(angles)
        if "opening" in wish:
            return self._opened(wish["opening"]), pose
        if "blink" in wish:
            return self._blinking(wish["blink"]), pose
        if "ring" in wish:
            return self._imitating(wish["ring"])
        if "latents" in wish:
            from model.portrait.blendshapes import from_motion

            actions, poses = from_motion(wish["latents"][None], self._renderer.rest)
            return actions[0], poses[0]
        if "actions" in wish:
            return self._with(self._neutral, **wish["actions"]), pose
        return self._renderer.rest, pose

    def _points(self, actions: Any, pose: Any = STILL) -> Any:
        return self._renderer.landmarks(actions, pose)

    def _with(self, actions: Any, **values: float) -> Any:
        out = actions.copy()
        for name, value in values.items():
            for full in (name, f"{name}Left", f"{name}Right"):
                if full in self._names:
                    out[self._names.index(full)] = np.clip(value, 0.0, 1.0)
        return out

    def _opened(self, opening: float) -> Any:
        """Actions that part the lips by ``opening`` of the outer eye corners' distance."""

        def at(share: float) -> Any:
            return self._with(self._neutral, **{k: share * v for k, v in OPENING.items()})

        def gap(share: float) -> float:
            points = self._points(at(share))
            return float(np.linalg.norm(points[13] - points[14])) / self._eyes

        return at(_solve(gap, opening, 1.3))

    def _blinking(self, share: float) -> Any:
        """Actions that close the eyes by ``share`` of their resting opening."""
        if share == 0.0 or share == 1.0:
            return self._with(self._renderer.rest, eyeBlink=1.0) if share else self._renderer.rest

        def opened(actions: Any) -> float:
            points = self._points(actions)
            return sum(
                float(np.linalg.norm(points[a] - points[b])) for a, b in ((159, 145), (386, 374))
            )

        whole = opened(self._renderer.rest)
        rest = [self._renderer.rest[self._names.index(f"eyeBlink{s}")] for s in ("Left", "Right")]

        def at(level: float) -> Any:
            out = self._renderer.rest.copy()
            for side, start in zip(("Left", "Right"), rest, strict=True):
                out[self._names.index(f"eyeBlink{side}")] = start + level * (1.0 - start)
            return out

        return at(_solve(lambda level: 1.0 - opened(at(level)) / max(whole, 1e-6), share, 1.0))

    def _imitating(self, ring: NDArray[np.float32]) -> tuple[Any, Any]:
        """The mouth shape and turn whose contour is most like ``ring`` (20, 2), corners aligned."""
        if not self._bank:
            rng = np.random.default_rng(0)
            rings = []
            for _ in range(BANK):
                actions = self._with(
                    self._neutral,
                    jawOpen=rng.uniform(0.0, 0.5),
                    mouthSmile=rng.uniform(0.0, 1.0),
                    mouthUpperUp=rng.uniform(0.0, 0.8),
                    mouthLowerDown=rng.uniform(0.0, 0.8),
                    mouthStretch=rng.uniform(0.0, 0.5),
                )
                pose = STILL.copy()
                pose[1] = np.deg2rad(rng.uniform(-12.0, 12.0))
                rings.append(_normal(self._points(actions, pose)[MOUTH_RING]))
                self._bank.append((actions, pose))
            self._rings = np.array(rings)
        return self._bank[int(np.abs(self._rings - _normal(ring)).sum(axis=1).argmin())]


def _normal(ring: NDArray[np.float32]) -> NDArray[np.complex128]:
    """A contour (20, 2) as complex numbers, its corners at 0 and 1."""
    place = ring[:, 0].astype(np.float64) + 1j * ring[:, 1]
    return (place - place[0]) / (place[10] - place[0])


def _solve(rising: Any, wanted: float, most: float) -> float:
    """Where ``rising`` reaches ``wanted``, between 0 and ``most``."""
    low, high = 0.0, most
    for _ in range(12):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return high


if __name__ == "__main__":
    sys.path.pop(0)  # this folder; the packages are the checkout's
    asked = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[2]).write_bytes(pickle.dumps(list(_draw_all(*asked))))
