"""A covered mouth is noticed; an uncovered one, whatever it looks like, passes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.manifest import WEIGHTS
from model.portrait.face_tracker import FaceTracker, NoFaceError
from model.portrait.image import load_picture
from model.portrait.occlusion import MARGIN, SEEN, MouthCover, OccludedError, mouth_patch
from model.types import Picture
from training.occlusion.covers import KEPT_APART, TRAINED, CroppedFace, covered
from training.occlusion.train import Net, logits

NAMES = ("astronaut.jpg", "monalisa.jpg", "presenter.jpg")


@pytest.fixture(scope="module")
def tracker() -> FaceTracker:
    return FaceTracker()


@pytest.fixture(scope="module")
def faces(tracker: FaceTracker, examples: Path) -> list[CroppedFace]:
    pictures = [load_picture((examples / name).read_bytes()) for name in NAMES]
    return [CroppedFace.of(picture, tracker.find(picture), 256) for picture in pictures]


@pytest.fixture(scope="module")
def cover() -> MouthCover:
    return MouthCover()


def is_covered(tracker: FaceTracker, cover: MouthCover, picture: Picture) -> bool:
    try:
        cover.check(picture, tracker.find(picture).landmarks)
    except NoFaceError:  # OccludedError is one
        return True
    return False


def test_covered_mouths_are_refused(
    tracker: FaceTracker, cover: MouthCover, faces: list[CroppedFace]
) -> None:
    random, found = np.random.default_rng(7), []
    for face in faces:
        for draw in (TRAINED | KEPT_APART).values():
            picture, share = covered(random, face, draw, [face.picture])
            found += [is_covered(tracker, cover, picture)] if share > 0.9 else []
    assert len(found) > 15 and sum(found) >= len(found) - 1


def test_what_is_beside_the_mouth_covers_nothing(
    tracker: FaceTracker, cover: MouthCover, faces: list[CroppedFace]
) -> None:
    random, found = np.random.default_rng(7), []
    for face in faces:
        for draw in TRAINED.values():
            picture, share = covered(random, face, draw, [face.picture], beside=True)
            found += [is_covered(tracker, cover, picture)] if share == 0 else []
    assert found and not any(found)


def test_light_colours_and_sharpness_do_not_matter(
    tracker: FaceTracker, cover: MouthCover, faces: list[CroppedFace]
) -> None:
    for face in faces:
        x = face.picture.astype(np.float32)
        grey = np.repeat(x.mean(axis=2, keepdims=True), 3, axis=2)
        for shown in (
            x,
            x / 3,
            100 + x / 2,
            grey,
            x * (0.7, 1.0, 1.2),
            cv2.GaussianBlur(x, (0, 0), 2),
        ):
            assert not is_covered(tracker, cover, np.clip(shown, 0, 255).astype(np.uint8))


def test_a_mouth_of_few_pixels_is_not_judged(cover: MouthCover, faces: list[CroppedFace]) -> None:
    face = faces[0].reduced(40)
    grey = np.full_like(face.picture, 128)
    cover.check(grey, face.points)
    with pytest.raises(OccludedError, match="needs visible lips"):
        cover.check(cv2.resize(grey, None, fx=6, fy=6), 6 * face.points)


def test_lips_must_be_plain_in_a_face_that_the_detector_doubts(
    cover: MouthCover, faces: list[CroppedFace]
) -> None:
    face = faces[0]

    def hidden(share: float) -> Picture:
        return (face.picture + share * (face.picture.mean(axis=(0, 1)) - face.picture)).astype(
            np.uint8
        )

    shares = np.linspace(0.0, 1.0, 200)
    logits = [cover.logit(mouth_patch(hidden(share), face.points)) for share in shares]
    faint = hidden(next(s for s, logit in zip(shares, logits, strict=True) if -1.8 < logit < -0.2))
    cover.check(faint, face.points, confidence=0.9)
    cover.check(face.picture, face.points, confidence=0.55)
    with pytest.raises(NoFaceError, match="no lips"):
        cover.check(faint, face.points, confidence=0.55)


def test_the_network_is_the_one_that_was_trained(cover: MouthCover) -> None:
    from safetensors.torch import load_file

    net = Net().eval()
    weights = load_file(WEIGHTS / "mouth_cover.safetensors")
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    height, width = (seen + 2 * margin for seen, margin in zip(SEEN, MARGIN, strict=True))
    patches = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
    theirs = logits(net, torch.from_numpy(patches).permute(0, 3, 1, 2))
    assert theirs == pytest.approx([cover.logit(patch) for patch in patches], abs=1e-3)


def test_a_patch_has_level_corners(faces: list[CroppedFace]) -> None:
    """However the face is turned, the patch is the same."""
    face = faces[2]
    centre = (face.shape[1] / 2, face.shape[0] / 2)
    turn = cv2.getRotationMatrix2D(centre, 30, 1.0)
    turned = np.asarray(cv2.warpAffine(face.picture, turn, face.shape[::-1]), np.uint8)
    points = face.points @ turn[:, :2].T + turn[:, 2]
    straight = mouth_patch(face.picture, face.points).astype(int)
    assert np.abs(straight - mouth_patch(turned, points.astype(np.float32))).mean() < 5
