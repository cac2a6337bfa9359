"""Rendered clips: portraits of many people, animated with the tracked motion of GRID's speaker.

GRID's own clips come first, with full confidence. Then each one is rendered on a portrait, with
confidence 0.5: lips and timing are a speaker's, the pixels a renderer's. A network that learns
from both must take the face from the portrait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.motion.space import MotionSpace
from model.portrait.blendshapes import from_motion
from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.framing import Frame
from model.portrait.image import PictureError, load_picture
from model.types import Floats
from model.video.space import face_square
from training.data.corpus import Grid, clip_motion, held_out, load_grid
from training.data.tracking import LANDMARK_INDEX
from training.video.clips import (
    ClipPiece,
    VideoClips,
    load_clips,
    pieces_of,
    save_index,
    write_clips,
)
from training.video.grid import grid_clips

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MIN_PORTRAITS = 10  # one of them is held out
RENDERED_CONFIDENCE = 0.5
# A square is rendered at this multiple of its size and then shrunk. The picture around it is larger
# by the second factor, so that hair and shoulders can move.
SUPERSAMPLING, SURROUNDINGS = 2.0, 1.7
MAX_ZOOM, MAX_SHIFT = 0.1, 0.04  # in sides of the square
MAX_GAIN, MAX_GAMMA = 0.2, 0.35  # per colour channel; of the logarithm of the gamma
SATURATIONS = (0.5, 1.3)
MAX_TRIES = 20
_NAME = "rendered/"

Picture = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Portrait:
    """A picture and the square around its face, framed as GRID's crops."""

    name: str
    picture: Picture
    square: Frame


@dataclass(frozen=True)
class RenderedClip:
    """T frames of a portrait in motion."""

    frames: NDArray[np.uint8]  # (T, side, side, 3)
    marks: Floats  # (T, 62, 2) landmarks in sides of the square
    coefficients: Floats  # (T, 52)


def render_clips(
    folder: Path, portraits: Path, out: Path, *, side: int, seed: int = 0
) -> VideoClips:
    """Write the clips of GRID's ``folder`` and their renderings on ``portraits`` to ``out``.

    Clip ``C + k`` is clip k of C rendered on a portrait, so GRID's held-out clips stay held out;
    they are rendered on every tenth portrait, the others on the rest. Raises ``ValueError`` for a
    folder without GRID's files or with fewer than ten portraits.
    """
    real = grid_clips(folder, out / "grid", side)
    found = load_portraits(portraits, side)
    if len(found) < MIN_PORTRAITS:
        raise ValueError(
            f"{portraits} holds {len(found)} portraits, expected at least {MIN_PORTRAITS}"
        )
    pieces = _all_pieces(real, load_grid(folder), found, seed=seed)
    clips = write_clips(out, pieces, frames=2 * len(real.frames), side=side)
    weighted = (
        replace(clip, confidence=RENDERED_CONFIDENCE) if clip.name.startswith(_NAME) else clip
        for clip in clips.clips
    )
    save_index(out, side, list(weighted))
    return load_clips(out)


def load_portraits(folder: Path, side: int) -> list[Portrait]:
    """All pictures under ``folder`` in which a face is found, sorted by path."""
    tracker = FaceTracker()
    found = []
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    for path in tqdm(files, desc=str(folder), unit="portrait"):
        try:
            picture = load_picture(path.read_bytes())
            square = face_square(tracker.find(picture).landmarks, side)
        except (PictureError, NoFaceError) as error:
            tqdm.write(f"left out: {path.name}: {error}")
            continue
        found.append(Portrait(path.stem, picture, square))
    return found


def portraits_for(portraits: Sequence[Portrait], held: bool) -> list[Portrait]:
    """Every tenth portrait if ``held`` out, else the others."""
    kept = held_out(len(portraits))
    return [portrait for portrait, k in zip(portraits, kept, strict=True) if k == held]


def augment_portrait(portrait: Portrait, random: np.random.Generator) -> tuple[Picture, Frame]:
    """A picture around the portrait's face with random crop, mirroring and colours, and the square
    in it that a clip shows."""
    square = portrait.square
    side = square.width
    wide = side / square.scale * (1.0 + random.uniform(-MAX_ZOOM, MAX_ZOOM))
    shift = random.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * wide
    middle = np.array(square.corner) + 0.5 * side / square.scale + shift
    large = 2 * round(0.5 * SURROUNDINGS * SUPERSAMPLING * side)
    scale = SUPERSAMPLING * side / wide
    x, y = middle - 0.5 * large / scale
    picture = Frame((float(x), float(y)), scale, large, large).cut(portrait.picture, 0)
    if random.random() < 0.5:
        picture = picture[:, ::-1]
    corner = 0.5 * (large - SUPERSAMPLING * side)
    return _coloured(picture, random), Frame((corner, corner), 1.0 / SUPERSAMPLING, side, side)


def _render_on_any(
    space: MotionSpace, portraits: Sequence[Portrait], motion: Floats, *, seeds: tuple[int, int]
) -> tuple[Portrait, RenderedClip]:
    """``motion`` on a random portrait, or on another one if augmentation hid its face."""
    random = np.random.default_rng(seeds)
    for _ in range(MAX_TRIES):
        portrait = portraits[int(random.integers(len(portraits)))]
        try:
            return portrait, render_clip(space, portrait, motion, random=random)
        except NoFaceError:
            continue
    raise ValueError(f"no face found in {MAX_TRIES} augmented portraits")


def render_clip(
    space: MotionSpace, portrait: Portrait, motion: Floats, *, random: np.random.Generator
) -> RenderedClip:
    """Render ``motion`` (T, 58) on an augmented ``portrait``.

    Raises `NoFaceError` if no face is found after augmentation.
    """
    picture, square = augment_portrait(portrait, random)
    renderer = space.decoder(space.encode_reference(picture), len(picture), "full")
    # The renderer reuses a frame's memory for the next one: shrinking copies it.
    frames = [_shrunk(frame, square) for frame in renderer.decode(motion)]
    coefficients, poses = from_motion(motion, renderer.rest)
    points = [
        square.place(renderer.landmarks(actions, pose)[LANDMARK_INDEX])
        for actions, pose in zip(coefficients, poses, strict=True)
    ]
    marks = np.asarray(np.stack(points) / square.width, np.float32)
    return RenderedClip(np.stack(frames), marks, coefficients)


def _coloured(picture: NDArray[np.generic], random: np.random.Generator) -> Picture:
    shares = np.asarray(picture, np.float32) / 255.0
    shares = shares ** np.exp(random.uniform(-MAX_GAMMA, MAX_GAMMA))
    grey = shares.mean(2, keepdims=True)
    shares = grey + random.uniform(*SATURATIONS) * (shares - grey)
    shares = shares * (1.0 + random.uniform(-MAX_GAIN, MAX_GAIN, 3))
    return np.rint(255.0 * shares.clip(0.0, 1.0)).astype(np.uint8)


def _all_pieces(
    real: VideoClips, grid: Grid, portraits: Sequence[Portrait], *, seed: int
) -> Iterator[ClipPiece]:
    yield from pieces_of(real)
    space = MotionSpace()
    for c, held in enumerate(tqdm(held_out(len(real)), desc="rendering", unit="clip")):
        motion, _ = clip_motion(grid, c)
        chosen = portraits_for(portraits, bool(held))
        portrait, rendered = _render_on_any(space, chosen, motion, seeds=(seed, c))
        yield ClipPiece(
            name=f"{_NAME}{portrait.name}/{real.clips[c].name}",
            frames=rendered.frames,
            samples=grid.samples[c],
            marks=rendered.marks,
            coefficients=rendered.coefficients,
            text=grid.texts[c],
            scores={"seen": float(grid.usable[c, : len(motion)].mean())},
        )


def _shrunk(picture: Picture, square: Frame) -> Picture:
    x = round(square.corner[0])
    wide = round(square.width / square.scale)
    cut = picture[x : x + wide, x : x + wide]
    size = (square.width, square.height)
    return np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA), np.uint8)
