"""Draw one framed portrait with any facial actions and head pose.

Back to front: the still background; the person, a mesh over face, hair and shoulders that is moved;
the mouth's interior between the lips, and lips that close over it; eyeballs, and lids that do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import (
    FACE_LANDMARKS,
    from_motion,
    rotation_matrices,
    shown_motion,
)
from model.portrait.framing import Frame, frame
from model.portrait.person_mask import PersonMask
from model.rendering.eyes import Eyeball
from model.rendering.face_model import EYES, FaceShape, RigidMotion, hide_teeth
from model.rendering.lids import Lids
from model.rendering.lips import ClosingLips
from model.rendering.matting import split
from model.rendering.mesh import OVAL, PortraitMesh, build_mesh
from model.rendering.mouth import Mouth
from model.rendering.raster import draw_triangles, drawable, untangle
from model.rendering.seam import PartedSeam, lip_gap
from model.types import DEFAULT_SIZE, Colour, Floats, Picture

# The mesh extends beyond the frame, so that no border is dragged into the picture.
PAD_SHARE = 0.10
# Head pose is limited softly: the picture does not show the sides of the head.
MAX_TURN = 0.42  # radians
# A portrait that is already turned (radians) shows less of the head, so it turns less.
TURNED_FROM, TURNED_TO, TURNED_SHARE = 0.35, 0.9, 0.35
MAX_SHIFT = 0.6  # outer-eye distances
# A weak perspective: a head this many eye distances away grows as it comes nearer.
CAMERA_DISTANCE = 12.0
UNTANGLE_ROUNDS = 80

DOWN = np.array([1.0, -1.0, -1.0])  # latent axes (y up, z to the viewer) → picture axes


@dataclass(frozen=True)
class PreparedPortrait:
    """What a portrait is drawn from.

    ``picture`` (H, W, 3) RGB; ``landmarks`` (478, 3) in its pixels; ``coefficients`` (52,) as
    tracked; ``person`` its mask.
    """

    picture: Picture
    landmarks: Floats
    coefficients: Floats
    person: PersonMask

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """As a `Reference` keeps it; masks as bytes."""
        return {
            "picture": self.picture,
            "landmarks": self.landmarks,
            "coefficients": self.coefficients,
            "person": _as_bytes(self.person.whole),
            "person_close": _as_bytes(self.person.close),
            "person_square": np.array(self.person.square, np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> PreparedPortrait:
        """The inverse of `to_arrays`."""
        picture = arrays["picture"].astype(np.uint8, copy=False)
        left, top, side = (float(v) for v in arrays["person_square"])
        return cls(
            picture=picture,
            landmarks=arrays["landmarks"].astype(np.float32, copy=False),
            coefficients=arrays["coefficients"].astype(np.float32, copy=False),
            person=PersonMask(
                whole=arrays["person"].astype(np.float32) / 255.0,
                close=arrays["person_close"].astype(np.float32) / 255.0,
                square=(left, top, side),
                width=picture.shape[1],
                height=picture.shape[0],
            ),
        )


def _as_bytes(mask: Floats) -> NDArray[np.uint8]:
    return np.clip(mask * 255.0, 0.0, 255.0).astype(np.uint8)


class PortraitRenderer:
    """Draws one portrait at one size. Threads may share it: it keeps no buffers.

    ``portrait`` (H, W, 3) is the framed picture: what the coefficients ``rest`` (52,) give without
    head movement, before its own background.
    """

    def __init__(
        self,
        source: PreparedPortrait,
        size: int = DEFAULT_SIZE,
        framing: str = "portrait",
        *,
        background: Colour | None = None,
    ) -> None:
        """``background`` stands behind the person; None: the picture's own.

        Raises ``ValueError`` for a size or framing that is not allowed.
        """
        picture, landmarks, person = source.picture, source.landmarks, source.person
        view = frame(
            framing,
            size,
            width=picture.shape[1],
            height=picture.shape[0],
            landmarks=landmarks,
            person=person.whole,
        )
        self.width, self.height = view.width, view.height
        self.pad = _padding(view, landmarks)
        padded = view.cut(picture, self.pad).astype(np.uint8)
        placed = hide_teeth(view.place(landmarks))
        self._shape = FaceShape(placed, source.coefficients)
        self._eye_distance = self._shape.eye_distance
        self._turn_share = _turn_share(self._shape.rotation)
        placed[:, :2] += self.pad
        mask = person.framed(view, self.pad)
        self.mesh = build_mesh(placed, eye_distance=self._eye_distance, person=mask, pad=self.pad)
        self._rest3 = self.mesh.rest.astype(np.float64)
        self._origin = self._shape.origin + (self.pad, self.pad, 0.0)
        layers = split(
            padded,
            mask,
            self.mesh.rest[OVAL, :2],
            eye_distance=self._eye_distance,
            background=background,
        )
        self.texture = drawable(layers.person)
        self._source = np.ascontiguousarray(self.mesh.rest[:, :2])
        inner = slice(self.pad, -self.pad) if self.pad else slice(None)
        self.portrait = np.ascontiguousarray(padded[inner, inner])
        moving, still = _moving(self.mesh, layers.alpha)
        self._moving = moving
        # Draw once what never moves.
        self._still = np.ascontiguousarray(layers.plate[inner, inner])
        at_rest = self._source - np.float32(self.pad)
        draw_triangles(still, at_rest, self._source, self.texture, self._still)
        self._points = placed
        self._eyes = [Eyeball.of(padded, placed, eye) for eye in EYES]
        self._lids = [Lids.of(padded, placed, eye) for eye in EYES]
        self._mouth = Mouth.of(padded, placed, self._shape)
        self._lips = ClosingLips.of(padded, placed)
        self._seam = PartedSeam.of(
            padded,
            placed,
            source=self._source,
            triangles=moving,
            unit=self._eye_distance,
            gap=lip_gap(self._shape.points),
        )
        self.rest = self._shape.rest

    def render(
        self, coefficients: Floats, pose: Floats, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Draw ``coefficients`` (52,) absolute, 0..1, and ``pose`` (6,) relative to the portrait.

        ``pose`` is a rotation vector (radians) and a translation (eye distances), axes x right,
        y up, z to the viewer. Returns (H, W, 3) uint8 RGB: ``out`` if given, else a new array.
        """
        if out is None:
            out = np.empty_like(self.portrait)
        face = self._shape.deform(np.asarray(coefficients, np.float32))
        turn, shift, grow = _bounded(np.asarray(pose, np.float64), self._turn_share)
        target = self.project(face, turn=turn, shift=shift, grow=grow)
        out[...] = self._still
        draw_triangles(self._moving, target[: len(self._source)], self._source, self.texture, out)
        rigid = self._rigid(turn, shift, grow)
        self._seam.draw(target[: len(self._source)], face=face, out=out)
        self._mouth.draw(face, target, rigid, now=np.asarray(coefficients), out=out)
        self._lips.draw(target, out)
        for eyeball in self._eyes:
            eyeball.draw(target, rigid, now=np.asarray(coefficients), rest=self.rest, out=out)
        for lids in self._lids:
            lids.draw(target, out)
        return out

    def decode(self, latents: Floats) -> Iterator[NDArray[np.uint8]]:
        """Motion latents (T, 58 or more) → T frames; each is valid until the next is asked for."""
        motion = shown_motion(np.asarray(latents, np.float32))
        coefficients, poses = from_motion(motion, self.rest)
        out = np.empty_like(self.portrait)
        for actions, pose in zip(coefficients, poses, strict=True):
            yield self.render(actions, pose, out)

    def vertices(self, coefficients: Floats, pose: Floats) -> Floats:
        """(V, 2): the mesh's moved vertices, in pixels of the frame."""
        return self._moved(coefficients, pose)[: len(self._source)]

    def landmarks(self, coefficients: Floats, pose: Floats) -> Floats:
        """(478, 2): the tracker's moved points, irises last, in pixels of the frame."""
        moved = self._moved(coefficients, pose)
        return np.concatenate([moved[:FACE_LANDMARKS], moved[len(self._source) :]])

    def _moved(self, coefficients: Floats, pose: Floats) -> Floats:
        turn, shift, grow = _bounded(np.asarray(pose, np.float64), self._turn_share)
        face = self._shape.deform(np.asarray(coefficients, np.float32))
        return self.project(face, turn=turn, shift=shift, grow=grow)

    def project(
        self, face: Floats, *, turn: NDArray[np.float64], shift: NDArray[np.float64], grow: float
    ) -> Floats:
        """Head-frame points (478, 3) → (V + 10, 2) pixels: the mesh's, then the irises'."""
        shape = self._shape
        offset = self._eye_distance * ((face - shape.points) @ shape.rotation.T)
        moved = self._rest3.copy()
        moved[:FACE_LANDMARKS] += offset[:FACE_LANDMARKS]
        moved[FACE_LANDMARKS:] += self.mesh.pull @ offset[OVAL]
        irises = self._points[FACE_LANDMARKS:] + offset[FACE_LANDMARKS:]
        everything = np.concatenate([moved, irises])
        follow = np.append(self.mesh.follow, np.ones(len(irises)))[:, None]
        turned = (
            (everything - self._origin) @ turn.T * grow
            + self._origin
            + shift * (self._eye_distance)
        )
        place = everything + follow * (turned - everything)
        flat = np.ascontiguousarray(place[:, :2], np.float32)
        guard = self.mesh.guard
        untangle(
            flat[: len(self._source)],
            guard.skin,
            guard.least,
            guard.first,
            guard.neighbours,
            guard.weights,
            guard.pinned,
            UNTANGLE_ROUNDS,
        )
        flat -= np.float32(self.pad)
        return flat

    def _rigid(
        self, turn: NDArray[np.float64], shift: NDArray[np.float64], grow: float
    ) -> RigidMotion:
        return RigidMotion(turn * grow, self._origin, shift * self._eye_distance, float(self.pad))


def _padding(view: Frame, landmarks: Floats) -> int:
    """Pixels to add beyond the frame on each side, so that a face cut by the border fits in."""
    placed = view.place(landmarks)[:, :2]
    over = max(0.0, float(-placed.min()), float((placed - (view.width, view.height)).max()))
    least = PAD_SHARE * max(view.width, view.height)
    return 2 * round(max(least, 1.25 * over + 0.5 * least) / 2)


def _turn_share(rotation: NDArray[np.float64]) -> float:
    """The share of a head turn to draw for a portrait at ``rotation`` (3, 3)."""
    away = float(np.arccos(np.clip(rotation[2, 2], -1.0, 1.0)))
    return float(np.interp(away, (TURNED_FROM, TURNED_TO), (1.0, TURNED_SHARE)))


def _bounded(
    pose: NDArray[np.float64], share: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Rotation (3, 3), shift (3,) in picture axes, and growth, each softly limited."""
    if pose.shape != (6,):
        raise ValueError(f"pose has shape {pose.shape}, expected (6,)")
    turn = share * pose[:3] * DOWN
    angle = float(np.linalg.norm(turn))
    if angle > 1e-9:
        turn = turn * (MAX_TURN * np.tanh(angle / MAX_TURN) / angle)
    shift = MAX_SHIFT * np.tanh(pose[3:] / MAX_SHIFT) * DOWN
    grow = CAMERA_DISTANCE / (CAMERA_DISTANCE + float(shift[2]))
    return rotation_matrices(turn[None])[0], shift * (1.0, 1.0, 0.0), grow


def _moving(mesh: PortraitMesh, alpha: Floats) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Triangles of the person that may move, and those that never do."""
    reach = np.ones(len(mesh.rest), bool)
    follows = mesh.follow[FACE_LANDMARKS:] > 0
    reach[FACE_LANDMARKS:] = follows | (mesh.pull.max(axis=1, initial=0.0) > 0)
    # A triangle shows the person if a few points in it, or pixels near them, are not clear.
    size = max(3, round(alpha.shape[1] / 60)) | 1
    spread = cv2.dilate(alpha, np.ones((size, size)))
    corners = mesh.rest[mesh.triangles, :2]
    shown = np.zeros(len(corners), bool)
    for i in range(5):
        for j in range(5 - i):
            place = corners.transpose(2, 0, 1) @ (np.array([i, j, 4 - i - j]) / 4)
            x, y = (
                np.clip(c, 0, n - 1).astype(int)
                for c, n in zip(place, alpha.shape[::-1], strict=True)
            )
            shown |= spread[y, x] > 0
    moves = reach[mesh.triangles].any(axis=1)
    return mesh.triangles[shown & moves], mesh.triangles[shown & ~moves]
