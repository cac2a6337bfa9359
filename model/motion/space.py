"""The motion latent space: a portrait as a reference, motion latents as frames.

Joins the tracker, the network's reference features and the renderer behind `LatentSpace`.
"""

from __future__ import annotations

import hashlib

import numpy as np

from model.lru import LRUCache
from model.portrait.blendshapes import (
    ACTION_COUNT,
    ACTIONS,
    FACE_LANDMARKS,
    LANDMARKS,
    MOTION_DIM,
    from_motion,
    reference_features,
    shown_motion,
)
from model.portrait.face_tracker import FaceTracker
from model.portrait.person_mask import PersonMask
from model.portrait.reference import TrackedPortrait
from model.rendering.face_model import EYES, FaceShape, face_basis, hide_teeth
from model.rendering.renderer import PortraitRenderer, PreparedPortrait
from model.types import Colour, Floats, Picture, Reference

# About ten megabytes each at 512 pixels.
KEPT_RENDERERS = 16
_RendererKey = tuple[bytes, int, str, Colour | None]  # reference, size, framing, background


class MotionSpace:
    """A frame's latent is (58,): 52 facial actions, head rotation and translation."""

    name = "motion"
    dim = MOTION_DIM
    parts_background = True

    def __init__(self, threads: int = 1) -> None:
        """Load the tracker and compile the drawing kernels: seconds on a machine's first run."""
        self._tracker = FaceTracker(threads)
        self._renderers = LRUCache[_RendererKey, PortraitRenderer](KEPT_RENDERERS)
        _draw_once()

    def encode_reference(self, picture: Picture) -> Reference:
        """``picture`` (H, W, 3) RGB → its reference. Raises `NoFaceError`."""
        tracked = TrackedPortrait.of(picture, self._tracker)
        face = tracked.face
        rest = FaceShape(hide_teeth(face.landmarks), face.coefficients).rest
        prepared = PreparedPortrait(
            tracked.picture, face.landmarks, face.coefficients, tracked.person
        )
        features = reference_features(rest, face.landmarks)
        return tracked.reference(self.name, features, prepared.to_arrays())

    def rest_prefix(self, frames: int) -> Floats:
        """(frames, 58) zeros: no action beyond the portrait's rest, lips closed, head still."""
        return np.zeros((frames, self.dim), np.float32)

    def face_motion(self, reference: Reference, latents: Floats) -> tuple[Floats, Floats]:
        """See `FacialSpace`. The rest is that of the network's own features."""
        reference.expect(self.name)
        return from_motion(shown_motion(latents), reference.features[:ACTION_COUNT])

    def decoder(
        self, reference: Reference, size: int, framing: str, *, background: Colour | None = None
    ) -> PortraitRenderer:
        """Prepare to draw. Raises ``ValueError`` for another space's reference or a bad option."""
        reference.expect(self.name)
        # Preparing takes as long as three windows of the network, most of a first fragment.
        key = (_digest(reference), size, framing, background)
        return self._renderers.get(key, lambda: _prepare(reference, size, framing, background))


def _digest(reference: Reference) -> bytes:
    """SHA-256 of what a renderer is made from."""
    digest = hashlib.sha256()
    for name, array in sorted(reference.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _prepare(
    reference: Reference, size: int, framing: str, background: Colour | None
) -> PortraitRenderer:
    source = PreparedPortrait.from_arrays(reference.arrays)
    return PortraitRenderer(source, size, framing, background=background)


def _draw_once() -> None:
    """Draw a grey face, so that no portrait waits for the kernels to be compiled."""
    points = np.zeros((LANDMARKS, 3), np.float32)
    points[:FACE_LANDMARKS] = face_basis().canonical * 32.0 + (64.0, 64.0, 0.0)
    for eye in EYES:
        points[eye.iris] = points[eye.ring].mean(axis=0)
        points[eye.iris[1:], :2] += ((2.0, 0.0), (0.0, 2.0), (-2.0, 0.0), (0.0, -2.0))
    mask = np.ones((8, 8), np.float32)
    portrait = PreparedPortrait(
        picture=np.full((128, 128, 3), 128, np.uint8),
        landmarks=points,
        coefficients=np.zeros(ACTION_COUNT, np.float32),
        person=PersonMask(mask, mask, (0, 0, 8), 128, 128),
    )
    renderer = PortraitRenderer(portrait, size=128)
    talking = renderer.rest.copy()
    talking[[ACTIONS.index("jawOpen"), ACTIONS.index("eyeBlinkLeft")]] = 0.5
    renderer.render(talking, np.full(6, 0.05, np.float32))
