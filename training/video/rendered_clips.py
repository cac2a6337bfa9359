"""Broad, mediocre video: portraits of many people, drawn with the motion of the few on film.

GRID's own clips come first, each believed whole; then each is said once more by a portrait,
believed half: lips and timing are a speaker's, the pixels a renderer's. Whoever learns from both
has to look at the portrait to know the face.
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
from model.rendering.renderer import LIVELINESS
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
LEAST_PORTRAITS = 10  # one of them is held out
DRAWN_TRUST = 0.5
# A square is drawn at this multiple of its size and shrunk, with as much again of its surroundings
# as hair and shoulders need to move.
FINER, AROUND = 2.0, 1.7
MOST_ZOOM, MOST_SHIFT = 0.1, 0.04  # of the square's side
MOST_GAIN, MOST_GAMMA = 0.2, 0.35  # of a colour channel; of the logarithm of a gamma
SATURATIONS = (0.5, 1.3)
MOST_TRIES = 20
_NAME = "drawn/"

Picture = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Portrait:
    """A picture and where the face is in it: the square that GRID's crops would show."""

    name: str
    picture: Picture
    square: Frame


def drawn_clips(folder: Path, portraits: Path, out: Path, side: int, seed: int = 0) -> VideoClips:
    """GRID's ``folder`` and what ``portraits`` make of it, as clips in ``out``.

    Clip ``C + k`` is clip k of C said by a portrait, so that what is held out of GRID is held out
    here as well; held-out clips are drawn on every tenth portrait, the others on the rest. Raises
    ``ValueError`` for a folder without GRID's files or with fewer than ten portraits.
    """
    real = grid_clips(folder, out / "grid", side)
    found = load_portraits(portraits, side)
    if len(found) < LEAST_PORTRAITS:
        raise ValueError(
            f"{portraits} holds {len(found)} portraits, expected at least {LEAST_PORTRAITS}"
        )
    pieces = _all_pieces(real, load_grid(folder), found, side, seed)
    clips = write_clips(out, pieces, 2 * len(real.frames), side)
    weighed = (
        replace(clip, trust=DRAWN_TRUST) if clip.name.startswith(_NAME) else clip
        for clip in clips.clips
    )
    save_index(out, side, list(weighed))
    return load_clips(out)


def load_portraits(folder: Path, side: int) -> list[Portrait]:
    """All pictures of ``folder`` and its folders in which a face is found, by name."""
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


def sitters_of(portraits: Sequence[Portrait], held: bool) -> list[Portrait]:
    """Who says the clips that are ``held`` out, every tenth portrait, or the others."""
    kept = held_out(len(portraits))
    return [portrait for portrait, k in zip(portraits, kept, strict=True) if k == held]


def varied(portrait: Portrait, random: np.random.Generator) -> tuple[Picture, Frame]:
    """A picture around ``portrait``'s face as another camera, light or mirror might show it, and
    the square in it that a clip shows."""
    square = portrait.square
    side = square.width
    wide = side / square.scale * (1.0 + random.uniform(-MOST_ZOOM, MOST_ZOOM))
    shift = random.uniform(-MOST_SHIFT, MOST_SHIFT, 2) * wide
    middle = np.array(square.corner) + 0.5 * side / square.scale + shift
    large = 2 * round(0.5 * AROUND * FINER * side)
    scale = FINER * side / wide
    x, y = middle - 0.5 * large / scale
    picture = Frame((float(x), float(y)), scale, large, large).cut(portrait.picture, 0)
    if random.random() < 0.5:
        picture = picture[:, ::-1]
    corner = 0.5 * (large - FINER * side)
    return _coloured(picture, random), Frame((corner, corner), 1.0 / FINER, side, side)


def _said(
    space: MotionSpace, sitters: Sequence[Portrait], motion: Floats, seeds: tuple[int, int]
) -> tuple[Portrait, tuple[NDArray[np.uint8], Floats, Floats]]:
    """Some sitter saying ``motion``; where light or crop hid a face, the next one."""
    random = np.random.default_rng(seeds)
    for _ in range(MOST_TRIES):
        sitter = sitters[int(random.integers(len(sitters)))]
        try:
            return sitter, draw(space, sitter, motion, random)
        except NoFaceError:
            continue
    raise ValueError(f"no face found in {MOST_TRIES} variations of the portraits")


def draw(
    space: MotionSpace, sitter: Portrait, motion: Floats, random: np.random.Generator
) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """``motion`` (T, 58) said by ``sitter``: squares (T, side, side, 3), points (T, 62, 2) in sides
    of the square, coefficients (T, 52). Raises `NoFaceError` where the varied portrait has none."""
    picture, square = varied(sitter, random)
    renderer = space.decoder(space.encode_reference(picture), len(picture), "full")
    # A drawn frame is valid only until the next one: shrinking copies it.
    frames = [_shrunk(drawn, square) for drawn in renderer.decode(motion)]
    coefficients, poses = from_motion(motion, renderer.rest)
    points = [
        square.place(renderer.landmarks(actions, pose)[LANDMARK_INDEX])
        for actions, pose in zip(coefficients, LIVELINESS * poses, strict=True)
    ]
    marks = np.asarray(np.stack(points) / square.width, np.float32)
    return np.stack(frames), marks, coefficients


def _coloured(picture: NDArray[np.generic], random: np.random.Generator) -> Picture:
    shares = np.asarray(picture, np.float32) / 255.0
    shares = shares ** np.exp(random.uniform(-MOST_GAMMA, MOST_GAMMA))
    grey = shares.mean(2, keepdims=True)
    shares = grey + random.uniform(*SATURATIONS) * (shares - grey)
    shares = shares * (1.0 + random.uniform(-MOST_GAIN, MOST_GAIN, 3))
    return np.rint(255.0 * shares.clip(0.0, 1.0)).astype(np.uint8)


def _all_pieces(
    real: VideoClips, grid: Grid, portraits: Sequence[Portrait], side: int, seed: int
) -> Iterator[ClipPiece]:
    yield from pieces_of(real)
    space = MotionSpace()
    for c, held in enumerate(tqdm(held_out(len(real)), desc="drawn", unit="clip")):
        sitters = sitters_of(portraits, bool(held))
        motion, _ = clip_motion(grid, c)
        sitter, (frames, marks, coefficients) = _said(space, sitters, motion, (seed, c))
        yield ClipPiece(
            f"{_NAME}{sitter.name}/{real.clips[c].name}",
            frames,
            grid.samples[c],
            marks,
            coefficients,
            grid.texts[c],
            scores={"seen": float(grid.usable[c, : len(motion)].mean())},
        )


def _shrunk(drawn: Picture, square: Frame) -> Picture:
    x = round(square.corner[0])
    wide = round(square.width / square.scale)
    cut = drawn[x : x + wide, x : x + wide]
    size = (square.width, square.height)
    return np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA), np.uint8)
