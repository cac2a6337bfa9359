"""From an uploaded picture to the part of a `Reference` that every latent space builds alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.face_tracker import Face, FaceTracker
from model.portrait.occlusion import MouthCover
from model.portrait.person_mask import PersonMask
from model.types import Floats, Picture, Reference

# No video is larger than 1024 pixels, but its crop may take only a part of the picture.
MAX_KEPT_SIDE = 2048  # pixels


@dataclass(frozen=True)
class TrackedPortrait:
    """The face and the person found in an uploaded picture.

    ``width`` and ``height`` are the upload's, turned until the face is upright. ``picture`` is what
    is kept of it, at most `MAX_KEPT_SIDE` a side; ``face`` and ``person`` are in its pixels.
    """

    width: int
    height: int
    picture: Picture
    face: Face
    person: PersonMask

    @classmethod
    def of(cls, uploaded: Picture, tracker: FaceTracker) -> TrackedPortrait:
        """``uploaded`` (H, W, 3) RGB. Raises `NoFaceError` or `OccludedError`."""
        kept = _at_most(uploaded, MAX_KEPT_SIDE)
        picture, face = tracker.find_upright(kept)
        _mouth_cover().check(picture, face.landmarks, confidence=face.confidence)
        person = tracker.person(picture, face)
        height, width = uploaded.shape[:2]
        if picture.shape[:2] != kept.shape[:2]:  # turned by a quarter
            height, width = width, height
        return cls(width, height, picture, face, person)

    def reference(
        self, latent_space: str, features: Floats, arrays: dict[str, NDArray[np.generic]]
    ) -> Reference:
        """The reference of ``latent_space``; its face box is in pixels of the upload."""
        scale = self.width / self.picture.shape[1]
        x0, y0, x1, y1 = (float(v * scale) for v in self.face.box)
        return Reference(
            latent_space=latent_space,
            width=self.width,
            height=self.height,
            face_box=(x0, y0, x1, y1),
            face_confidence=self.face.confidence,
            features=features,
            arrays=arrays,
        )


@cache
def _mouth_cover() -> MouthCover:
    return MouthCover()


def _at_most(picture: Picture, side: int) -> Picture:
    longest = max(picture.shape[:2])
    if longest <= side:
        return picture
    size = (
        max(1, round(picture.shape[1] * side / longest)),
        max(1, round(picture.shape[0] * side / longest)),
    )
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
