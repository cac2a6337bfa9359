"""Covers drawn over faces: masks, fingers, patches; and kinds that are kept apart to measure by.

A cover is made from a `Face`: colours (H, W, 3) 0..255 and its opacity (H, W) 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.portrait.face_tracker import Face as TrackedFace
from model.rendering.mesh import OVAL
from model.types import Picture

Array = NDArray[np.floating[Any]]

# fmt: off
LIPS = np.array([
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146])
_JAW = OVAL[9:28]  # from ear to ear below
# fmt: on
_CHEEKS = [50, 280, 205, 425]


@dataclass(frozen=True)
class CroppedFace:
    """``picture`` (H, W, 3) RGB around a face, its mesh ``points`` (478, 2) in pixels.

    ``right``, ``down``: unit vectors of the face; ``unit``: pixels between outer eye corners.
    """

    picture: Picture
    points: Array

    @classmethod
    def of(cls, picture: Picture, face: TrackedFace, side: int) -> CroppedFace:
        """Twice the face's extent, at most ``side`` pixels."""
        points = face.landmarks[:, :2]
        low, high = points.min(axis=0), points.max(axis=0)
        reach = float(max(high - low))
        x0, y0 = np.maximum((low + high) / 2 - reach, 0).astype(int)
        x1, y1 = ((low + high) / 2 + reach).astype(int)
        part = picture[y0:y1, x0:x1]
        scale = min(1.0, side / max(part.shape[:2]))
        small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return cls(np.asarray(small, np.uint8), ((points - (x0, y0)) * scale).astype(np.float32))

    def reduced(self, side: int) -> CroppedFace:
        """At most ``side`` pixels."""
        scale = min(1.0, side / max(self.shape))
        small = cv2.resize(self.picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return CroppedFace(np.asarray(small, np.uint8), self.points * np.float32(scale))

    @property
    def unit(self) -> float:
        return float(np.linalg.norm(self.points[263] - self.points[33]))

    @property
    def right(self) -> Array:
        return (self.points[263] - self.points[33]) / np.float32(self.unit)

    @property
    def down(self) -> Array:
        return np.array([-self.right[1], self.right[0]], np.float32)

    @property
    def mouth(self) -> Array:
        return (self.points[13] + self.points[14]) / 2

    @property
    def shape(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]

    def coordinates(self, centre: Array) -> tuple[Array, Array]:
        """Of each pixel: to the right and down from ``centre``, in units."""
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
        x, y = (x - centre[0]) / self.unit, (y - centre[1]) / self.unit
        return x * self.right[0] + y * self.right[1], x * self.down[0] + y * self.down[1]

    def at(self, centre: Array, offsets: Sequence[tuple[float, float]]) -> Array:
        """Points right and down from ``centre`` by ``offsets``, units."""
        return np.stack([centre + self.unit * (a * self.right + b * self.down) for a, b in offsets])

    def skin(self) -> Array:
        mask = np.zeros(self.shape, np.uint8)
        for point in self.points[_CHEEKS]:
            cv2.circle(mask, [int(v) for v in point], max(2, int(0.08 * self.unit)), 1, -1)
        return np.median(self.picture[mask > 0], axis=0).astype(np.float32)


_Cover = tuple[Array, Array]
Draw = Callable[[Generator, CroppedFace, Sequence[Picture]], _Cover]


def covered(
    random: Generator,
    face: CroppedFace,
    draw: Draw,
    pictures: Sequence[Picture],
    *,
    beside: bool = False,
) -> tuple[Picture, float]:
    """The face with a cover, and the share of its lips that is covered.

    ``beside``: shifted to where it hardly covers them. Textures are cut from ``pictures``.
    """
    colours, opacity = draw(random, face, pictures)
    if random.random() < 0.7:
        blur = max(0.3, face.unit * random.uniform(0.002, 0.02))
        colours = cv2.GaussianBlur(colours.astype(np.float32), (0, 0), blur)
    if beside:
        angle = random.uniform(0, 2 * np.pi) if draw is not mask else np.pi / 2
        reach = face.unit * random.uniform(0.6, 1.2)
        shift = np.array([[1, 0, reach * np.cos(angle)], [0, 1, reach * np.sin(angle)]])
        size = face.shape[::-1]
        colours = cv2.warpAffine(
            colours.astype(np.float32), shift, size, borderMode=cv2.BORDER_REPLICATE
        )
        opacity = cv2.warpAffine(opacity.astype(np.float32), shift, size)
    lips = _polygon(face, face.points[LIPS])
    share = float((lips * opacity).sum() / max(lips.sum(), 1e-6))
    mixed = face.picture * (1 - opacity[..., None]) + np.clip(colours, 0, 255) * opacity[..., None]
    return mixed.astype(np.uint8), share


def mask(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """From the nose to the jaw, plain or with a pattern, with or without pleats and loops."""
    points = face.points
    top = points[random.choice([6, 197, 195, 5, 4])]
    lift = random.uniform(-0.15, 0.05) * face.unit * face.down
    jaw = points[1] + (points[_JAW] - points[1]) * random.uniform(0.9, 1.08)
    bridge = [
        (points[93] + points[50]) / 2 + lift,
        0.4 * points[50] + 0.6 * top + lift / 2,
        top,
        0.4 * points[280] + 0.6 * top + lift / 2,
        (points[323] + points[280]) / 2 + lift,
    ]
    outline = np.vstack([jaw, bridge])
    opacity = _polygon(face, _rounded(outline) if random.random() < 0.7 else outline)
    right, down = face.coordinates(points[1])
    light = 1 - random.uniform(0.05, 0.35) * np.abs(right) ** 1.5
    for _ in range(random.integers(0, 5)):  # pleats
        at = random.uniform(0, 1.1) + 0.1 * right**2
        light -= random.uniform(0.05, 0.3) * np.exp(
            -(((down - at) / random.uniform(0.01, 0.06)) ** 2)
        )
    if random.random() < 0.3:  # a seam in the middle
        light -= random.uniform(0.1, 0.3) * np.exp(-((right / random.uniform(0.02, 0.06)) ** 2))
    cloth = _texture(random, face, pictures) * np.clip(light, 0.2, 1.5)[..., None]
    return _shaded(random, cloth, face.unit), opacity


def fingers(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """Three to five, of the face's own skin, mostly with a palm."""
    skin = face.skin() * random.uniform(0.75, 1.15) + random.uniform(-12, 12, 3)
    angle = random.choice([0, np.pi]) + random.normal(0, 0.45)
    if random.random() < 0.3:
        angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * face.right + np.sin(angle) * face.down
    across = np.array([-along[1], along[0]])
    y, x = np.mgrid[: face.shape[0], : face.shape[1]].astype(np.float32)
    light, opacity = np.ones(face.shape, np.float32), np.zeros(face.shape, np.float32)
    if random.random() < 0.75:
        palm = face.mouth + face.unit * random.uniform(0.55, 0.95) * along
        radius = face.unit * random.uniform(0.35, 0.5)
        out = np.hypot(x - palm[0], y - palm[1]) / radius
        opacity = np.clip((1 - out) * radius + 0.5, 0, 1)
        light = np.where(opacity > 0, 1 - 0.25 * out**3, light)
    count, radius = random.integers(3, 6), face.unit * random.uniform(0.1, 0.16)
    gap, aside = radius * random.uniform(1.6, 1.98), random.normal(0, 0.1) * face.unit
    for i in random.permutation(count):
        middle = face.mouth + across * ((i - (count - 1) / 2) * gap + aside)
        tip = middle - along * face.unit * random.uniform(0.2, 0.6)
        root = middle + along * face.unit * random.uniform(0.5, 1.0)
        span = root - tip
        t = np.clip(((x - tip[0]) * span[0] + (y - tip[1]) * span[1]) / (span @ span), 0, 1)
        width = radius * (0.85 + 0.15 * t)
        out = np.hypot(x - tip[0] - t * span[0], y - tip[1] - t * span[1]) / width
        one = np.clip((1 - out) * radius + 0.5, 0, 1)
        round_light = 1 - random.uniform(0.2, 0.6) * out**3
        for joint in (random.uniform(0.25, 0.4), random.uniform(0.5, 0.7)):
            round_light -= random.uniform(0, 0.2) * np.exp(-(((t - joint) / 0.015) ** 2))
        light = light * (1 - one) + round_light * one
        opacity = np.maximum(opacity, one)
    return _shaded(random, skin * light[..., None], face.unit, strength=0.7), opacity


def patch(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """An ellipse, a rectangle or an uneven shape of any colour or pattern."""
    centre = face.mouth + face.unit * random.normal(0, 0.11, 2).astype(np.float32)
    wide, high = random.uniform(0.4, 1.0), random.uniform(0.25, 0.8)
    kind = random.integers(4)
    if kind == 0:
        outline = [(-wide, -high), (wide, -high), (wide, high), (-wide, high)]
    else:
        corners = 40 if kind == 1 else random.integers(5, 12)
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        reach = np.ones(corners) if kind == 1 else random.uniform(0.8, 1.4, corners)
        outline = list(
            zip(reach * wide * np.cos(angles), reach * high * np.sin(angles), strict=True)
        )
    points = face.at(centre, outline)
    shape = _polygon(face, _rounded(points) if kind == 3 else points)
    return _shaded(random, _texture(random, face, pictures), face.unit), shape


def microphone(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """A dark ball of wire or foam before the lips, on a stick."""
    centre = face.at(face.mouth, [(random.normal(0, 0.06), random.uniform(0, 0.12))])[0]
    radius = random.uniform(0.33, 0.48)
    right, down = face.coordinates(centre)
    out = np.hypot(right, down) / radius
    if random.random() < 0.5:
        period = radius * random.uniform(0.08, 0.16)
        wires = np.sin(2 * np.pi * right / period) * np.sin(2 * np.pi * down / period) > 0
        grey = random.uniform(40, 150) * (0.6 + 0.4 * wires) * (1 - 0.6 * out**2)
        spot = np.hypot(right + 0.35 * radius, down + 0.35 * radius) / (0.2 * radius)
        grey += 90 * np.exp(-(spot**2))
    else:
        grey = random.uniform(15, 45) * (1 - 0.3 * out**2) + 5 * _noise(random, face.shape, 2)
    stick = [(-0.16, 0.0), (0.16, 0.0), (0.3, 2.5), (0.1, 2.5)]
    opacity = np.clip((1 - out) * radius * face.unit + 0.5, 0, 1)
    colours = np.where(out < 1, grey, 35.0)[..., None] * np.ones(3)
    rest = _polygon(face, face.at(centre, stick))
    return _shaded(random, colours, face.unit, strength=0.4), np.maximum(opacity, rest)


def cup(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """Held to the lips, seen from the front."""
    radius, top = random.uniform(0.45, 0.65), random.uniform(-0.35, -0.15)
    outline = [(-radius, top), (radius, top), (0.8 * radius, 1.3), (-0.8 * radius, 1.3)]
    right, down = face.coordinates(face.mouth)
    rim = np.hypot(right / radius, (down - top) / (0.18 * radius)) < 1
    across = right / radius
    light = 1 - 0.4 * across**2 + 0.2 * np.exp(-(((across + 0.4) / 0.1) ** 2)) - 0.35 * rim
    side = _polygon(face, face.at(face.mouth, outline))
    colours = _colour(random) * light[..., None]
    return _shaded(random, colours, face.unit, strength=0.4), np.maximum(side, rim)


def scarf(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """Cloth in folds from below the nose down."""
    top = face.points[2] + face.down * random.uniform(-0.25, 0.1) * face.unit
    xs = np.linspace(-2.2, 2.2, 24)
    wave = np.cumsum(random.normal(0, 0.03, 24))
    ys = wave - np.interp(0, xs, wave) + 0.12 * xs**2
    edge = [*zip(xs, ys, strict=True), (2.2, 4.0), (-2.2, 4.0)]
    right, down = face.coordinates(top)
    fold = down - 0.12 * right**2 + 0.15 * _noise(random, face.shape, 0.6 * face.unit)
    phase = 2 * np.pi * fold / random.uniform(0.2, 0.45)
    light = 1 + 0.25 * np.sin(phase + 0.8 * _noise(random, face.shape, 0.5 * face.unit))
    light += 0.08 * _noise(random, face.shape, max(2, 0.02 * face.unit))
    colours = _colour(random) * light[..., None]
    return _shaded(random, colours, face.unit), _polygon(face, face.at(top, edge))


def book(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
    """A flat thing with or without letters: a book, a telephone, a sign."""
    top, wide = random.uniform(-0.3, 0.12), random.uniform(0.7, 1.2)
    outline = [(-wide, top), (wide, top), (wide, top + 2), (-wide, top + 2)]
    page = np.full((*face.shape, 3), np.clip(_colour(random), 0, 255), np.uint8)
    for _ in range(random.integers(0, 5)):
        word = "".join(random.choice(list("ABCDEFGHKLMNOPRSTUVZ"), 6))
        offset = (random.uniform(-0.9, -0.3), random.uniform(0.1, 1.2))
        at = face.at(face.points[2], [offset])[0]
        ink = [float(value) for value in _colour(random)]
        height = face.unit / 60 * random.uniform(0.5, 1.4)
        thick = max(1, int(face.unit / 25))
        cv2.putText(page, word, [int(v) for v in at], 0, height, ink, thick, cv2.LINE_AA)
    shape = _polygon(face, face.at(face.points[2], outline))
    return _shaded(random, page.astype(np.float32), face.unit, strength=0.5), shape


TRAINED: dict[str, Draw] = {"mask": mask, "fingers": fingers, "patch": patch}
KEPT_APART: dict[str, Draw] = {"microphone": microphone, "cup": cup, "scarf": scarf, "book": book}


def hand_of(cutouts: Sequence[Picture]) -> Draw:
    """Photographed hands: ``cutouts`` (h, w, 4) RGBA, laid over the lips in the face's own tone."""

    def hand(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> _Cover:
        cutout = cutouts[int(random.integers(len(cutouts)))]
        solid = (cutout[..., 3] > 127).astype(np.uint8)
        depth = cv2.distanceTransform(solid, cv2.DIST_L2, 5)
        y, x = np.unravel_index(depth.argmax(), depth.shape)  # where the hand is broadest
        scale = face.unit * random.uniform(0.42, 0.62) / float(depth.max())
        matrix = cv2.getRotationMatrix2D((float(x), float(y)), random.normal(0, 25), scale)
        matrix[:, 2] += face.mouth + random.normal(0, 0.08, 2) * face.unit - (x, y)
        size = face.shape[::-1]
        laid = cv2.warpAffine(cutout, matrix, size).astype(np.float32)
        tone = face.skin() / np.maximum(np.median(cutout[solid > 0][:, :3], axis=0), 1)
        tone = 1 + (tone - 1) * random.uniform(0.6, 1)
        return laid[..., :3] * tone * random.uniform(0.85, 1.1), laid[..., 3] / 255

    return hand


def _colour(random: Generator) -> Array:
    """Any, or that of a common mask or of skin."""
    kind = random.integers(5)
    if kind == 0:
        return random.uniform(0, 255, 3)
    if kind in (1, 2):
        return random.uniform(*((5, 60), (190, 250))[kind - 1]) + random.uniform(-8, 8, 3)
    low, high = (((90, 170, 200), (200, 220, 245)), ((120, 90, 70), (235, 190, 170)))[kind - 3]
    return random.uniform(low, high)


def _texture(random: Generator, face: CroppedFace, pictures: Sequence[Picture]) -> Array:
    """Plain, stripes, checks, blots, cloudy, or cut from a picture."""
    height, width = face.shape
    plain = np.ones((height, width, 3), np.float32) * _colour(random)
    kind, period = random.integers(7), face.unit * random.uniform(0.06, 0.5)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = random.uniform(0, np.pi)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    if kind == 4:
        grain = [_noise(random, face.shape, period) * random.uniform(5, 50) for _ in range(3)]
        return plain + np.stack(grain, axis=2)
    if kind >= 5:
        source = pictures[int(random.integers(len(pictures)))]
        side = max(16, int(random.uniform(0.15, 0.6) * min(source.shape[:2])))
        top, left = (random.integers(length - side + 1) for length in source.shape[:2])
        part = source[top : top + side, left : left + side]
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    if kind == 2:
        wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
    if kind == 3:
        wave = _noise(random, face.shape, period)
    share = 1.0 if kind == 0 else np.clip(4 * wave, -1, 1)[..., None] / 2 + 0.5
    return plain * share + _colour(random) * (1 - share)


def _noise(random: Generator, shape: tuple[int, int], cell: float) -> Array:
    coarse = [max(2, int(length / cell) + 2) for length in shape]
    grid = random.normal(0, 1, coarse).astype(np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _shaded(random: Generator, colours: Array, unit: float, strength: float = 1.0) -> Array:
    """Under uneven light, with grain."""
    uneven = _noise(random, colours.shape[:2], unit * random.uniform(0.3, 1.2))
    light = 1 + strength * random.uniform(0, 0.18) * uneven
    return colours * light[..., None] + random.normal(0, random.uniform(0, 6), colours.shape)


def _polygon(face: CroppedFace, points: Array) -> Array:
    shape = np.zeros(face.shape, np.uint8)
    cv2.fillPoly(shape, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return shape.astype(np.float32) / 255


def _rounded(points: Array) -> Array:
    """Corners cut three times (Chaikin)."""
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        cut = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], 1)
        points = cut.reshape(-1, 2)
    return points.astype(np.float32)
