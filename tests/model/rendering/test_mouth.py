"""The open mouth: teeth that stay with skull and jaw, a portrait's own teeth and colours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from model.motion.space import MotionSpace
from model.portrait.blendshapes import ABSOLUTE, ACTIONS
from model.portrait.image import load_picture
from model.rendering.face_model import MOUTH_CORNERS, MOUTH_RING
from model.rendering.mouth import tongue_rise
from model.rendering.own_teeth import View, take_over
from model.rendering.renderer import PortraitRenderer
from model.types import Floats

STILL = np.zeros(6, np.float32)


def rendered(examples: Path, name: str, *, grey: bool = False) -> PortraitRenderer:
    picture = load_picture((examples / f"{name}.jpg").read_bytes())
    if grey:
        picture = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    space = MotionSpace()
    return space.decoder(space.encode_reference(picture), 256, "portrait")


def opened(rest: Floats, jaw: float, **more: float) -> Floats:
    out = np.where(ABSOLUTE, 0.0, rest).astype(np.float32)
    for name, value in {"jawOpen": jaw, **more}.items():
        out[ACTIONS.index(name)] = value
    return out


def mouth(renderer: PortraitRenderer, actions: Floats) -> np.ndarray:
    """The pixels well inside the lips, (N, 3)."""
    frame = renderer.render(actions, STILL)
    ring = renderer.landmarks(actions, STILL)[MOUTH_RING]
    mask = np.zeros(frame.shape[:2], np.uint8)
    cv2.fillPoly(mask, [ring.round().astype(np.int32)], 1)
    return frame[cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0].astype(float)


@pytest.fixture(scope="module")
def astronaut(examples: Path) -> PortraitRenderer:
    return rendered(examples, "astronaut")


def test_a_grey_portrait_gets_a_grey_mouth(examples: Path, astronaut: PortraitRenderer) -> None:
    grey = rendered(examples, "astronaut", grey=True)
    assert np.ptp(mouth(grey, opened(grey.rest, 0.5)), axis=1).max() <= 2
    coloured = mouth(astronaut, opened(astronaut.rest, 0.5))
    assert (coloured[:, 0] - coloured[:, 2]).mean() > 10


def test_own_teeth_stay_where_they_are_while_the_jaw_opens(astronaut: PortraitRenderer) -> None:
    half, wide = opened(astronaut.rest, 0.4), opened(astronaut.rest, 0.6)
    ring = astronaut.landmarks(half, STILL)[MOUTH_RING]
    x, y = ring[[4, 5, 6]].mean(axis=0).astype(int)
    # A few rows below the upper lip: teeth, which belong to the skull.
    teeth = slice(y + 2, y + 5), slice(x - 8, x + 9)
    first = astronaut.render(half, STILL)[teeth].astype(float)
    second = astronaut.render(wide, STILL)[teeth].astype(float)
    assert first.mean() > 140
    assert np.abs(first - second).mean() < 12


def test_a_soft_portrait_gets_soft_teeth(examples: Path) -> None:
    picture = load_picture((examples / "presenter.jpg").read_bytes())
    space = MotionSpace()
    steepest = []
    for blurred in (picture, cv2.GaussianBlur(picture, (0, 0), 0.006 * picture.shape[1])):
        renderer = space.decoder(space.encode_reference(blurred), 256, "portrait")
        actions = opened(renderer.rest, 0.5)
        light = cv2.cvtColor(renderer.render(actions, STILL), cv2.COLOR_RGB2GRAY)
        ring = renderer.landmarks(actions, STILL)[MOUTH_RING]
        (left, top), (right, bottom) = ring.min(axis=0).astype(int), ring.max(axis=0).astype(int)
        steep = np.abs(np.diff(light[top:bottom, left:right].astype(float), axis=0))
        steepest.append(np.quantile(steep, 0.95))
    assert steepest[1] < 0.6 * steepest[0]


def test_the_mouth_darkens_with_depth_and_shows_a_tongue(astronaut: PortraitRenderer) -> None:
    actions = opened(astronaut.rest, 0.7)
    frame = astronaut.render(actions, STILL).astype(float).mean(axis=2)
    ring = astronaut.landmarks(actions, STILL)[MOUTH_RING]
    x, top, bottom = int(ring[5, 0]), int(ring[5, 1]), int(ring[15, 1])
    column = frame[top : bottom + 1, x - 2 : x + 3].mean(axis=1)
    upper, middle, tongue = (column[int(s * len(column))] for s in (0.15, 0.5, 0.8))
    assert middle < 0.5 * upper
    assert tongue > 1.2 * middle


def test_the_line_between_closed_lips_is_not_smeared_beyond_the_corners(examples: Path) -> None:
    renderer = rendered(examples, "presenter")

    def darkest(actions: Floats) -> float:
        """How light columns beside the corners are in the mean, the darker one, of the cheek's."""
        light = cv2.cvtColor(renderer.render(actions, STILL), cv2.COLOR_RGB2GRAY).astype(float)
        points = renderer.landmarks(actions, STILL)
        left, right = points[list(MOUTH_CORNERS)]
        columns = []
        for x, y in (left - 0.06 * (right - left), right + 0.06 * (right - left)):
            columns.append(light[int(y) - 4 : int(y) + 5, int(x)].mean())
        return min(columns) / float(np.median(light[int(left[1]) - 20, :][100:156]))

    assert darkest(opened(renderer.rest, 0.7)) > 0.85 * darkest(renderer.rest)


def test_a_beard_stays_beyond_the_corners(examples: Path) -> None:
    bare = rendered(examples, "presenter")
    picture = bare.render(bare.rest, STILL).copy()
    left, right = bare.landmarks(bare.rest, STILL)[list(MOUTH_CORNERS)]
    for corner, outward in ((left, -1), (right, 1)):
        x, y = corner.round().astype(int)
        hairs = x + outward * np.arange(1, 24)
        hairs = hairs[hairs % 5 < 3]  # with skin between them
        picture[y - 22 : y + 23, hairs] = 30, 22, 16
    space = MotionSpace()
    bearded = space.decoder(space.encode_reference(picture), 256, "portrait")
    actions = opened(bearded.rest, 0.5)
    light = bearded.render(actions, STILL).astype(float).mean(axis=2)
    left, right = bearded.landmarks(actions, STILL)[list(MOUTH_CORNERS)].round().astype(int)
    for x, y in (left - (6, 0), right + (6, 0)):
        assert light[y - 2 : y + 3, x - 2 : x + 3].mean() < 90  # 130 without them


def test_the_tongue_rises_for_a_little_open_jaw_and_when_it_is_out() -> None:
    nothing = np.zeros(len(ACTIONS), np.float32)
    assert tongue_rise(opened(nothing, 0.08)) > 0.5
    assert tongue_rise(opened(nothing, 0.5)) < 0.1
    assert tongue_rise(opened(nothing, 0.08, mouthFunnel=0.7)) < 0.1
    assert tongue_rise(opened(nothing, 0.5, tongueOut=1.0)) == 1.0


def test_a_mouth_without_teeth_is_not_taken_for_teeth() -> None:
    row = np.full((60, 200, 3), 200.0)
    alpha = np.ones((60, 200))
    dark = View(np.full((60, 200, 3), 30.0), np.full((60, 200), 5.0))
    assert take_over(dark, row, alpha, tooth=np.full(3, 200.0), texels=30.0) is None


def test_a_missing_tooth_stays_missing() -> None:
    row, alpha = np.full((60, 200, 3), 200.0), np.zeros((60, 200))
    alpha[:40] = 1.0
    inside = np.full((60, 200), -5.0)
    inside[12:45] = 8.0
    picture = np.full((60, 200, 3), (150.0, 60.0, 60.0))
    picture[12:45] = 15.0
    picture[15:40, 50:150] = 205.0
    picture[15:40, 120:135] = 15.0
    found = take_over(View(picture, inside), row, alpha, tooth=np.full(3, 200.0), texels=25.0)
    assert found is not None
    assert found.alpha[28, 127] == 1.0
    assert found.colour[28, 127].mean() < 60
    assert found.colour[28, 100].mean() > 180
