"""The frame keeps hair and chin, stays in the picture, and maps pixels exactly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.portrait.face_tracker import FaceTracker
from model.portrait.framing import Frame, frame
from model.portrait.image import load_picture


@pytest.fixture(scope="module")
def tracked(examples: Path) -> dict[str, tuple]:
    tracker = FaceTracker()
    found = {}
    for name in ("astronaut", "monalisa", "presenter"):
        picture = load_picture((examples / f"{name}.jpg").read_bytes())
        face = tracker.find(picture)
        found[name] = (picture, face.landmarks, tracker.person(picture, face).whole)
    return found


@pytest.mark.parametrize("name", ["astronaut", "monalisa", "presenter"])
def test_portrait_is_a_square_with_the_whole_head(tracked: dict, name: str) -> None:
    picture, landmarks, person = tracked[name]
    view = frame(
        "portrait",
        512,
        width=picture.shape[1],
        height=picture.shape[0],
        landmarks=landmarks,
        person=person,
    )
    assert (view.width, view.height) == (512, 512)
    placed = view.place(landmarks)
    assert placed[:, :2].min() > 20 and placed[:, :2].max() < 492
    # Above the forehead there is room for hair: a fifth of the face at the least.
    assert placed[10, 1] > 0.2 * (placed[152, 1] - placed[10, 1])


@pytest.mark.parametrize("size", [128, 512, 1024])
def test_full_keeps_the_picture_and_its_aspect(tracked: dict, size: int) -> None:
    picture, landmarks, person = tracked["monalisa"]
    view = frame(
        "full",
        size,
        width=picture.shape[1],
        height=picture.shape[0],
        landmarks=landmarks,
        person=person,
    )
    assert max(view.width, view.height) == size
    assert view.width % 2 == 0 and view.height % 2 == 0
    assert view.width / view.height == pytest.approx(300 / 447, abs=2 / size)


def test_a_face_at_the_border_stays_in_frame(tracked: dict) -> None:
    picture, landmarks, person = tracked["astronaut"]
    left = int(landmarks[:, 0].min()) - 4
    cut = picture[:, left:]
    moved = landmarks - np.array([left, 0, 0], np.float32)
    columns = round(left / picture.shape[1] * person.shape[1])
    view = frame(
        "portrait",
        256,
        width=cut.shape[1],
        height=cut.shape[0],
        landmarks=moved,
        person=person[:, columns:],
    )
    assert view.place(moved)[:, 0].min() >= 0
    assert view.corner[0] >= 0


@pytest.mark.parametrize("below", [0.0, 0.02, 0.2])
def test_what_lies_beyond_the_border_shows_no_second_face(tracked: dict, below: float) -> None:
    """The picture ends at the chin, or a little below it."""
    picture, landmarks, person = tracked["presenter"]
    face = landmarks[:468, :2]
    low, high = face.min(axis=0), face.max(axis=0)
    bottom = int(high[1] + below * (high[1] - low[1])) + 1
    cut = picture[:bottom]
    rows = round(bottom / picture.shape[0] * person.shape[0])
    view = frame(
        "portrait",
        256,
        width=cut.shape[1],
        height=bottom,
        landmarks=landmarks,
        person=person[:rows],
    )
    assert view.corner[1] + view.height / view.scale <= bottom + 0.5  # inside the picture
    marked = np.zeros((bottom, cut.shape[1]), np.uint8)
    (x0, y0), (x1, y1) = low.astype(int), high.astype(int)
    marked[y0 : y1 - 2, x0:x1] = 255
    pad = 60
    seen = view.cut(marked, pad)
    edge = pad + (bottom - view.corner[1]) * view.scale
    assert not seen[int(edge) + 4 :].any()


def test_what_is_not_allowed_is_named(tracked: dict) -> None:
    _, landmarks, person = tracked["astronaut"]
    for framing, size, says in [
        ("round", 512, "portrait, full"),
        ("full", 511, "even"),
        ("full", 2000, "128 to 1024"),
    ]:
        with pytest.raises(ValueError, match=says):
            frame(framing, size, width=512, height=512, landmarks=landmarks, person=person)


@given(
    scale=st.floats(0.3, 3.0),
    corner=st.tuples(st.floats(0, 40), st.floats(0, 40)),
    x=st.integers(70, 110),
)
def test_pixels_and_points_move_alike(scale: float, corner: tuple[float, float], x: int) -> None:
    picture = np.zeros((600, 600, 3), np.uint8)
    picture[:, :x] = 200
    view = Frame(corner, scale, 128, 128)
    row = view.cut(picture, 0)[64, :, 0].astype(float)
    expected = float(view.place(np.array([[x, 90.0]], np.float32))[0, 0])
    if 8 < expected < 120:
        # The edge between bright and dark lies where the point does.
        assert row.sum() / 200.0 == pytest.approx(expected, abs=0.6)
