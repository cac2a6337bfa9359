"""Faces are found where they are, and only there."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from model.portrait.blendshapes import ACTIONS
from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.framing import Frame
from model.portrait.image import load_picture
from model.portrait.occlusion import MouthCover


@pytest.fixture(scope="module")
def tracker() -> FaceTracker:
    return FaceTracker()


@pytest.mark.parametrize("name", ["astronaut.jpg", "monalisa.jpg", "presenter.jpg"])
def test_a_face_is_found_with_its_mesh(tracker: FaceTracker, examples: Path, name: str) -> None:
    picture = load_picture((examples / name).read_bytes())
    face = tracker.find(picture)
    x0, _, x1, _ = face.box
    inside = (face.landmarks[:, 0] > x0 - (x1 - x0)) & (face.landmarks[:, 0] < x1 + (x1 - x0))
    assert inside.all() and face.landmarks.shape == (478, 3)
    # The eyes are above the mouth, the subject's right eye is on the left.
    assert face.landmarks[33, 0] < face.landmarks[263, 0]
    assert face.landmarks[159, 1] < face.landmarks[13, 1] < face.landmarks[152, 1]
    assert face.confidence > 0.5


def test_a_smile_is_read_as_one(tracker: FaceTracker, examples: Path) -> None:
    smiling = tracker.find(load_picture((examples / "astronaut.jpg").read_bytes()))
    quiet = tracker.find(load_picture((examples / "monalisa.jpg").read_bytes()))
    smile = ACTIONS.index("mouthSmileLeft")
    assert smiling.coefficients[smile] > 0.5 > quiet.coefficients[smile]
    assert smiling.coefficients[ACTIONS.index("tongueOut")] == 0.0


def test_scale_and_place_do_not_matter(tracker: FaceTracker, examples: Path) -> None:
    picture = load_picture((examples / "astronaut.jpg").read_bytes())
    moved = np.full((900, 1100, 3), 128, np.uint8)
    moved[300:812, 500:1012] = picture
    there = tracker.find(moved).landmarks[:, :2] - (500, 300)
    assert np.abs(there - tracker.find(picture).landmarks[:, :2]).mean() < 2.0


def test_the_largest_of_several_faces_is_taken(tracker: FaceTracker, examples: Path) -> None:
    picture = load_picture((examples / "astronaut.jpg").read_bytes())
    both = np.zeros((512, 768, 3), np.uint8)
    both[:, :512] = picture
    both[128:384, 512:] = picture[::2, ::2]
    assert tracker.find(both).box[0] < 512


@pytest.mark.parametrize("name", ["astronaut.jpg", "monalisa.jpg", "presenter.jpg"])
def test_a_portrait_is_turned_until_its_face_is_upright(
    tracker: FaceTracker, examples: Path, name: str
) -> None:
    picture = load_picture((examples / name).read_bytes())
    for quarters in range(4):
        upright, face = tracker.find_upright(np.ascontiguousarray(np.rot90(picture, quarters)))
        assert np.array_equal(upright, picture)
        assert face.landmarks[159, 1] < face.landmarks[13, 1]


def test_a_face_is_found_on_a_long_page(tracker: FaceTracker, examples: Path) -> None:
    picture = load_picture((examples / "astronaut.jpg").read_bytes())
    page = np.full((2000, 600, 3), 245, np.uint8)
    small = cv2.resize(picture, (160, 160), interpolation=cv2.INTER_AREA)  # the face is 32 wide
    page[1700:1860, 90:250] = small
    face = tracker.find(page)
    there = tracker.find(picture).landmarks[:, :2] * (160 / 512) + (90, 1700)
    assert np.abs(face.landmarks[:, :2] - there).mean() < 2.0


@pytest.mark.parametrize("what", ["blank", "noise"])
def test_no_face_is_an_error(tracker: FaceTracker, what: str) -> None:
    picture = np.full((256, 256, 3), 90, np.uint8)
    if what == "noise":
        picture = np.random.default_rng(0).integers(0, 255, picture.shape, np.uint8)
    with pytest.raises(NoFaceError, match="no human face"):
        tracker.find(picture)


def test_the_collection_of_faces(tracker: FaceTracker, test_data: Path) -> None:
    cover = MouthCover()
    for path in sorted(test_data.glob("portraits/[air]*/*")):
        picture = load_picture(path.read_bytes())
        cover.check(picture, tracker.find(picture).landmarks)
    for path in sorted(test_data.glob("portraits/bad_inputs/noface*")):
        with pytest.raises(NoFaceError):
            tracker.find(load_picture(path.read_bytes()))


def test_the_mask_holds_the_person(tracker: FaceTracker, examples: Path) -> None:
    picture = load_picture((examples / "astronaut.jpg").read_bytes())
    face = tracker.find(picture)
    mask = tracker.person(picture, face).framed(Frame((0.0, 0.0), 1.0, 512, 512), 0)
    x, y = face.landmarks[4, :2].astype(int)
    assert mask.shape == picture.shape[:2]
    assert mask[y, x] > 0.9 and mask[10, 250] < 0.3
