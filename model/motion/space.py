"""The motion latent space: a portrait as a reference, motion latents as frames.

Joins the tracker, what the network is told of a face, and the renderer behind `LatentSpace`.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from model.lru import LRUCache
from model.portrait.blendshapes import (
    ACTION_COUNT,
    ACTIONS,
    FACE_LANDMARKS,
    LANDMARKS,
    MOTION_DIM,
    reference_features,
)
from model.portrait.face_tracker import FaceTracker
from model.portrait.person_mask import PersonMask
from model.rendering.face_model import EYES, FaceShape, face_basis, hide_teeth
from model.rendering.renderer import PortraitRenderer
from model.types import Floats, Reference

# What is kept of the uploaded picture: no video is larger than 1024 pixels, and its crop may take
# a part of the picture only.
MAX_KEPT_SIDE = 2048
# About ten megabytes each at 512 pixels.
KEPT_RENDERERS = 16
_RendererKey = tuple[bytes, int, str]  # reference, size, framing


class MotionSpace:
    """A frame's latent is (58,): 52 facial actions, head rotation and translation."""

    name = "motion"
    dim = MOTION_DIM

    def __init__(self, threads: int = 1) -> None:
        """Loads the tracker and compiles the drawing kernels: seconds on a machine's first time."""
        self._tracker = FaceTracker(threads)
        self._renderers = LRUCache[_RendererKey, PortraitRenderer](KEPT_RENDERERS)
        _draw_once()

    def encode_reference(self, picture: NDArray[np.uint8]) -> Reference:
        """``picture`` (H, W, 3) RGB → what is kept of it. Raises `model.portrait.NoFaceError`."""
        kept = _at_most(picture, MAX_KEPT_SIDE)
        face = self._tracker.find(kept)
        person = self._tracker.person(kept, face)
        rest = FaceShape(hide_teeth(face.landmarks), face.coefficients).rest
        scale = picture.shape[1] / kept.shape[1]
        x0, y0, x1, y1 = (float(v * scale) for v in face.box)
        return Reference(
            latent_space=self.name,
            width=picture.shape[1],
            height=picture.shape[0],
            face_box=(x0, y0, x1, y1),
            face_confidence=face.confidence,
            features=reference_features(rest, face.landmarks),
            arrays={
                "picture": kept,
                "landmarks": face.landmarks,
                "coefficients": face.coefficients,
                "person": _as_bytes(person.whole),
                "person_close": _as_bytes(person.close),
                "person_square": np.array(person.square, np.float32),
            },
        )

    def rest_prefix(self, frames: int) -> Floats:
        """(frames, 58) zeros: no action beyond the portrait's rest, lips closed, head still."""
        return np.zeros((frames, self.dim), np.float32)

    def decoder(self, reference: Reference, size: int, framing: str) -> PortraitRenderer:
        """Prepare to draw. Raises ``ValueError`` for another space's reference or a bad option."""
        reference.expect(self.name)
        # Preparing takes as long as three windows of the network, most of a first fragment.
        key = (_digest(reference), size, framing)
        return self._renderers.get(key, lambda: _prepare(reference, size, framing))


def _digest(reference: Reference) -> bytes:
    """SHA-256 of everything that a renderer is made from."""
    digest = hashlib.sha256()
    for name, array in sorted(reference.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _prepare(reference: Reference, size: int, framing: str) -> PortraitRenderer:
    arrays = reference.arrays
    square = arrays["person_square"]
    return PortraitRenderer(
        picture=arrays["picture"].astype(np.uint8, copy=False),
        landmarks=arrays["landmarks"].astype(np.float32, copy=False),
        coefficients=arrays["coefficients"].astype(np.float32, copy=False),
        person=PersonMask(
            whole=arrays["person"].astype(np.float32) / 255.0,
            close=arrays["person_close"].astype(np.float32) / 255.0,
            square=(float(square[0]), float(square[1]), float(square[2])),
            width=arrays["picture"].shape[1],
            height=arrays["picture"].shape[0],
        ),
        size=size,
        framing=framing,
    )


def _draw_once() -> None:
    """Draw a faceless face, so that no portrait has to wait for the kernels to be compiled."""
    points = np.zeros((LANDMARKS, 3), np.float32)
    points[:FACE_LANDMARKS] = face_basis().canonical * 32.0 + (64.0, 64.0, 0.0)
    for eye in EYES:
        points[eye.iris] = points[eye.ring].mean(axis=0)
        points[eye.iris[1:], :2] += ((2.0, 0.0), (0.0, 2.0), (-2.0, 0.0), (0.0, -2.0))
    renderer = PortraitRenderer(
        picture=np.full((128, 128, 3), 128, np.uint8),
        landmarks=points,
        coefficients=np.zeros(ACTION_COUNT, np.float32),
        person=PersonMask(
            np.ones((8, 8), np.float32), np.ones((8, 8), np.float32), (0, 0, 8), 128, 128
        ),
        size=128,
    )
    talking = renderer.rest.copy()
    talking[ACTIONS.index("jawOpen")] = 0.5
    renderer.render(talking, np.full(6, 0.05, np.float32))


def _as_bytes(mask: Floats) -> NDArray[np.uint8]:
    return np.clip(mask * 255.0, 0.0, 255.0).astype(np.uint8)


def _at_most(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    longest = max(picture.shape[:2])
    if longest <= side:
        return picture
    size = (
        max(1, round(picture.shape[1] * side / longest)),
        max(1, round(picture.shape[0] * side / longest)),
    )
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
