"""What a viewer relies on: the portrait at rest, closed lips, whole blinks, nothing torn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.motion.space import MotionSpace
from model.portrait.blendshapes import ABSOLUTE, ACTIONS, MOTION_DIM
from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.image import load_picture
from model.rendering.face_model import EYES, LOWER_ROWS
from model.rendering.mesh import signed_areas
from model.rendering.renderer import PortraitRenderer
from model.types import Floats, Reference

STILL = np.zeros(6, np.float32)
# Folded area below this many pixels (of 512 x 512) cannot be seen.
UNSEEN = 2.5


@pytest.fixture(scope="module")
def space() -> MotionSpace:
    return MotionSpace()


@pytest.fixture(scope="module")
def references(space: MotionSpace, examples: Path) -> dict[str, Reference]:
    return {
        name: space.encode_reference(load_picture((examples / f"{name}.jpg").read_bytes()))
        for name in ("astronaut", "monalisa", "presenter")
    }


def shaped(rest: Floats, **actions: float) -> Floats:
    """Lips at zero, the rest of the face as it is, then the named actions, both sides."""
    out = np.where(ABSOLUTE, 0.0, rest).astype(np.float32)
    for name, value in actions.items():
        for full in (name, f"{name}Left", f"{name}Right"):
            if full in ACTIONS:
                out[ACTIONS.index(full)] = value
    return out


def strong_motions(rest: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Every mouth shape, blinks and brows; ±12 degrees about each axis and about all."""
    for actions in (
        {},
        {"jawOpen": 0.7},
        {"jawOpen": 0.4, "mouthFunnel": 0.8},
        {"jawOpen": 0.2, "mouthPucker": 1.0},
        {"jawOpen": 0.3, "mouthStretch": 0.8, "mouthLowerDown": 0.6, "mouthUpperUp": 0.5},
        {"mouthRollLower": 0.8, "mouthRollUpper": 0.8},
        {"mouthSmile": 0.9, "jawOpen": 0.2},
        {"mouthFrown": 0.8, "mouthPress": 0.7},
        {"mouthShrugUpper": 0.7, "mouthShrugLower": 0.7},
        {"jawLeft": 0.6, "jawOpen": 0.2},
        {"eyeBlink": 1.0, "browDown": 1.0, "eyeSquint": 1.0},
        {"browInnerUp": 1.0, "browOuterUp": 1.0, "eyeWide": 1.0},
        {"cheekPuff": 1.0},
    ):
        yield shaped(rest, **actions), STILL
    turns = np.concatenate([np.eye(3), -np.eye(3), np.ones((1, 3)) / 1.7, -np.ones((1, 3)) / 1.7])
    for turn in turns * np.deg2rad(12):
        yield shaped(rest, jawOpen=0.4), np.concatenate([turn, np.zeros(3)]).astype(np.float32)
        yield shaped(rest, eyeBlink=1.0), np.concatenate([turn, np.zeros(3)]).astype(np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(float) - b) ** 2).mean())
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def folded_area(renderer: PortraitRenderer, actions: Floats, pose: Floats) -> float:
    areas = signed_areas(renderer.vertices(actions, pose), renderer.mesh.guard.skin)
    return float(-areas[areas < 0].sum() / 2)


def stretched_most(renderer: PortraitRenderer, actions: Floats, pose: Floats) -> float:
    """The largest growth of a mesh edge in view, outside the openings, in pixels of 512."""
    skin = renderer.mesh.guard.skin
    edges = np.concatenate([skin[:, [0, 1]], skin[:, [1, 2]], skin[:, [2, 0]]])
    still, after = renderer.vertices(renderer.rest, STILL), renderer.vertices(actions, pose)
    before = renderer.mesh.rest[:, :2]
    seen = np.all((still >= 0) & (still < (renderer.width, renderer.height)), axis=1)
    edges = edges[seen[edges].all(axis=1)]
    long = [np.linalg.norm(p[edges[:, 0]] - p[edges[:, 1]], axis=1) for p in (before, after)]
    return float((long[1] - long[0]).max()) * 512 / renderer.width


def lips_apart(tracker: FaceTracker, picture: np.ndarray) -> float:
    """Inner lips' distance over that of the outer eye corners, tracked from the picture."""
    points = tracker.find(picture).landmarks[:, :2]
    return float(np.linalg.norm(points[13] - points[14]) / np.linalg.norm(points[33] - points[263]))


@pytest.mark.parametrize("framing", ["portrait", "full"])
@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("name", ["astronaut", "monalisa", "presenter"])
def test_at_rest_it_is_the_portrait(
    space: MotionSpace, references: dict[str, Reference], name: str, size: int, framing: str
) -> None:
    renderer = space.decoder(references[name], size, framing)
    frame = renderer.render(renderer.rest, STILL)
    assert max(frame.shape[:2]) == size
    assert psnr(frame, renderer.portrait) >= 38.0


@pytest.mark.parametrize("name", ["astronaut", "monalisa", "presenter"])
def test_no_fold_and_no_tear(
    space: MotionSpace, references: dict[str, Reference], name: str
) -> None:
    renderer = space.decoder(references[name], 512, "portrait")
    for actions, pose in strong_motions(renderer.rest):
        assert folded_area(renderer, actions, pose) < UNSEEN
        assert stretched_most(renderer, actions, pose) < 45.0


@pytest.mark.parametrize("name", ["astronaut", "monalisa", "presenter"])
def test_lips_close_and_open_and_lids_close(
    space: MotionSpace, references: dict[str, Reference], name: str
) -> None:
    tracker = FaceTracker()
    renderer = space.decoder(references[name], 512, "portrait")
    closed = lips_apart(tracker, renderer.render(shaped(renderer.rest), STILL))
    opened = lips_apart(tracker, renderer.render(shaped(renderer.rest, jawOpen=0.35), STILL))
    assert closed < 0.03 < 0.07 < opened
    blink = tracker.find(renderer.render(shaped(renderer.rest, eyeBlink=1.0), STILL))
    before = references[name].arrays["coefficients"]
    index = ACTIONS.index("eyeBlinkLeft")
    assert blink.coefficients[index] > before[index] + 0.2


@pytest.mark.parametrize("yaw", [-12.0, 0.0, 12.0])
@pytest.mark.parametrize("name", ["astronaut", "monalisa", "presenter"])
def test_a_closed_eye_is_skin_and_one_smooth_line(
    space: MotionSpace, references: dict[str, Reference], name: str, yaw: float
) -> None:
    """No white and no iris is left where the eye was; lashes run along the lid's edge."""
    renderer = space.decoder(references[name], 512, "portrait")
    pose = np.array([0.0, np.deg2rad(yaw), 0.0, 0.0, 0.0, 0.0], np.float32)
    frame = renderer.render(shaped(renderer.rest, eyeBlink=1.0), pose) @ (0.299, 0.587, 0.114)
    opened = renderer.landmarks(renderer.rest, pose)
    for eye in EYES:
        left, right = np.sort(opened[list(eye.corners), 0])
        columns = np.arange(round(left + 0.2 * (right - left)), round(right - 0.2 * (right - left)))
        above, below = (
            np.interp(columns, *opened[contour][np.argsort(opened[contour, 0])].T)
            for contour in (eye.upper, eye.lower)
        )
        line = []
        for column, top, bottom in zip(columns, above, below, strict=True):
            rows = frame[int(top) : int(bottom) + 4, column]
            line.append(int(top) + int(rows.argmin()))
            lid = rows[: max(1, rows.argmin() - 3)]
            assert 0.7 * np.median(lid) < lid.min() and lid.max() < 1.3 * np.median(lid)
        assert np.abs(np.diff(line)).max() <= 2


def test_a_smile_closes_without_a_rim_of_teeth(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    renderer = space.decoder(references["astronaut"], 512, "portrait")
    closed = shaped(renderer.rest)
    points = renderer.landmarks(closed, STILL)
    frame = renderer.render(closed, STILL) @ (0.299, 0.587, 0.114)
    seam = points[LOWER_ROWS[0][1:-1]].round().astype(int)
    lip = points[LOWER_ROWS[2][1:-1]].round().astype(int)
    rows = [frame[y - 2 : y + 3, x].max() for x, y in seam]
    assert np.median(rows) < 1.05 * np.median(frame[lip[:, 1], lip[:, 0]])


def test_more_jaw_opens_more(space: MotionSpace, references: dict[str, Reference]) -> None:
    renderer = space.decoder(references["presenter"], 512, "portrait")
    tracker = FaceTracker()
    gaps = [
        lips_apart(tracker, renderer.render(shaped(renderer.rest, jawOpen=jaw), STILL))
        for jaw in (0.0, 0.15, 0.3, 0.5)
    ]
    assert gaps == sorted(gaps) and gaps[-1] > 0.12


def test_the_head_turns_where_it_is_told(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    renderer = space.decoder(references["presenter"], 512, "portrait")
    nose = 4
    start = renderer.vertices(renderer.rest, STILL)[nose]
    for axis, sign, moves in [(1, 1, (1, 0)), (1, -1, (-1, 0)), (0, 1, (0, 1)), (0, -1, (0, -1))]:
        pose = STILL.copy()
        pose[axis] = sign * 0.15
        change = renderer.vertices(renderer.rest, pose)[nose] - start
        # Yaw is positive towards the picture's right, pitch downwards (axes y up, z to us).
        assert float(change @ np.array(moves)) > 3.0
    shifted = STILL.copy()
    shifted[4] = 0.1
    assert renderer.vertices(renderer.rest, shifted)[nose, 1] < start[1] - 5.0


def test_gaze_moves_the_iris_and_nothing_else(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    renderer = space.decoder(references["presenter"], 512, "portrait")
    rest = renderer.render(renderer.rest, STILL).astype(int).copy()
    looking = renderer.rest.copy()
    looking[[ACTIONS.index("eyeLookOutLeft"), ACTIONS.index("eyeLookInRight")]] = 0.8
    changed = np.abs(renderer.render(looking, STILL) - rest).max(axis=2) > 8
    rows, columns = np.nonzero(changed)
    assert 60 < changed.sum() < 6000
    assert np.ptp(rows) < 60 and 60 < np.ptp(columns) < 220


def test_the_far_background_stands_still(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    renderer = space.decoder(references["presenter"], 512, "full")
    pose = np.array([0.1, 0.15, 0.05, 0.05, 0.0, 0.0], np.float32)
    frame = renderer.render(shaped(renderer.rest, jawOpen=0.3), pose).astype(int)
    changed = np.abs(frame - renderer.portrait).max(axis=2)
    assert changed[:200, :100].max() == 0 and changed[:200, -100:].max() == 0
    assert changed.max() > 60


def test_a_colour_stands_behind_the_person(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    own = space.decoder(references["presenter"], 512, "portrait")
    green = space.decoder(references["presenter"], 512, "portrait", background=(0, 255, 0))
    pose = np.array([0.1, 0.15, 0.05, 0.05, 0.0, 0.0], np.float32)
    for moved in (STILL, pose):
        talking = shaped(own.rest, jawOpen=0.3)
        before, after = (r.render(talking, moved).astype(int) for r in (own, green))
        face = own.landmarks(talking, moved).round().astype(int)
        (left, top), (right, bottom) = face.min(axis=0) + 45, face.max(axis=0) - 45
        inside = np.s_[top:bottom, left:right]
        assert np.abs(before[inside] - after[inside]).max() <= 1
        assert (after[:60, :60] == (0, 255, 0)).all() and (after[:60, -60:] == (0, 255, 0)).all()
    # The person's edge is a mix of person and colour: nothing there is of the wall behind.
    keyed = after[..., 1] - np.maximum(after[..., 0], after[..., 2])
    edge = (keyed > 40) & (keyed < 215)
    assert 0.002 < edge.mean() < 0.05


def test_decode_draws_latents_relative_to_rest(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    renderer = space.decoder(references["astronaut"], 256, "portrait")
    latents = np.zeros((3, MOTION_DIM), np.float32)
    latents[1, ACTIONS.index("jawOpen")] = 0.4
    frames = [frame.copy() for frame in renderer.decode(latents)]
    assert np.array_equal(frames[0], frames[2]) and not np.array_equal(frames[0], frames[1])


def test_a_caller_may_bring_the_buffer(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    renderer = space.decoder(references["astronaut"], 256, "portrait")
    out = np.zeros((256, 256, 3), np.uint8)
    frame = renderer.render(renderer.rest, STILL, out)
    assert frame is out and out.any()


def test_a_reference_survives_its_bytes(
    space: MotionSpace, references: dict[str, Reference]
) -> None:
    again = Reference.from_bytes(references["monalisa"].to_bytes())
    pose = np.array([0.05, 0.1, 0.0, 0.0, 0.0, 0.0], np.float32)
    one, two = (space.decoder(r, 256, "portrait") for r in (references["monalisa"], again))
    assert np.array_equal(one.render(one.rest, pose), two.render(two.rest, pose))


def test_what_is_not_allowed_is_named(space: MotionSpace, references: dict[str, Reference]) -> None:
    with pytest.raises(ValueError, match="expected an even number, 128 to 1024"):
        space.decoder(references["monalisa"], 100, "portrait")
    renderer = space.decoder(references["monalisa"], 128, "portrait")
    with pytest.raises(ValueError, match="expected \\(6,\\)"):
        renderer.render(renderer.rest, np.zeros(3, np.float32))


@pytest.mark.slow
def test_the_collection_of_portraits(space: MotionSpace, test_data: Path) -> None:
    """All portraits x all strong motions: portrait at rest, no folds, no tears, lips that close."""
    tracker = FaceTracker()
    paths = sorted(test_data.glob("portraits/[air]*/*"))
    still_open, folds, refused = [], [], []
    for path in paths:
        try:
            reference = space.encode_reference(load_picture(path.read_bytes()))
        except NoFaceError:
            refused.append(path.name)
            continue
        renderer = space.decoder(reference, 512, "portrait")
        assert psnr(renderer.render(renderer.rest, STILL), renderer.portrait) >= 38.0, path.name
        for actions, pose in strong_motions(renderer.rest):
            folds.append(folded_area(renderer, actions, pose))
            assert stretched_most(renderer, actions, pose) < 45.0, path.name
        try:
            if lips_apart(tracker, renderer.render(shaped(renderer.rest), STILL)) > 0.03:
                still_open.append(path.name)
        except NoFaceError:
            still_open.append(path.name)
    assert refused == ["liveavatar_dwarven_blacksmith.jpg"]  # the mesh has its lips on the nose
    # At most a sliver at the seam of the lips, in few of thousands of frames.
    assert np.mean(np.array(folds) > UNSEEN) < 0.003 and max(folds) < 8.0
    # Two portraits shout: of mouths that wide a rim of teeth stays when the lips meet.
    assert len(paths) > 90 and len(still_open) <= 2, still_open
