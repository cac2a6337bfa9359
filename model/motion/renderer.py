"""Motion → pixels: one framed portrait, ready to be drawn with any actions and head pose.

Back to front: the still picture; the mesh of face, hair and shoulders, textured with the portrait
and moved; the mouth's inside through the opening of the lips; the eyeballs through the lids.
Knows the portrait's pixels and geometry; does not know networks, time or video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.conditioning import Floats
from model.motion.actions import ACTION_COUNT, ACTIONS, from_motion
from model.motion.geometry import (
    EYES,
    LOWER_ROWS,
    MOUTH_CORNERS,
    MOUTH_RING,
    UPPER_ROWS,
    UPPER_SHARE,
    Eye,
    FaceShape,
    face_basis,
    hide_teeth,
    rotation_matrix,
)
from model.motion.mesh import OVAL, build_mesh
from model.motion.raster import (
    Packed,
    distances_inside,
    draw_eye,
    draw_mouth,
    draw_triangles,
    pack_rgb,
    untangle,
)
from model.portrait.framing import Frame, frame

# Beyond the frame the mesh goes on, so that no border is dragged into the picture.
PAD_SHARE = 0.10
# Head pose is bounded softly: what the picture does not show cannot be turned into view.
MAX_TURN = 0.42  # radians
# A portrait already turned this far (radians) has less to show: it turns the less for it.
TURNED_FROM, TURNED_TO, TURNED_SHARE = 0.35, 0.9, 0.35
MAX_SHIFT = 0.6  # outer-eye distances
# A weak perspective: a head this many eye distances away grows as it comes nearer.
CAMERA_DISTANCE = 12.0
# At full eyeLook* the iris travels this share of the eye's width (across) or half of it (up, down).
GAZE_ACROSS, GAZE_UPDOWN = 0.26, 0.11
# Lips further apart than this in the portrait show its own teeth; below, there is nothing to see.
OWN_MOUTH_GAP = 0.022
UNTANGLE_ROUNDS = 80
CANONICAL_MOUTH_WIDTH = 0.552  # between the mouth's corners, in eye distances

DOWN = np.array([1.0, -1.0, -1.0])  # latent axes (y up, z to the viewer) → picture axes


class PortraitRenderer:
    """Draws one portrait at one size. Not safe to share between threads: it reuses its buffers.

    ``portrait`` (H, W, 3) is the framed picture; ``rest`` (52,) are the coefficients with which,
    and no head movement, it is what is drawn.
    """

    def __init__(
        self,
        picture: NDArray[np.uint8],
        landmarks: Floats,
        coefficients: Floats,
        person: Floats,
        size: int = 512,
        framing: str = "portrait",
    ) -> None:
        """``picture`` (H, W, 3) RGB; ``landmarks`` (478, 3) its pixels; ``person`` (h, w) 0..1.

        Raises ``ValueError`` for a size or framing that is not allowed.
        """
        view = frame(framing, size, picture.shape[1], picture.shape[0], landmarks, person)
        self.width, self.height = view.width, view.height
        self.pad = 2 * round(PAD_SHARE * max(view.width, view.height) / 2)
        padded = view.cut(picture, self.pad).astype(np.uint8)
        placed = hide_teeth(view.place(landmarks))
        self._shape = FaceShape(placed, coefficients)
        self._eye_distance = self._shape.eye_distance
        self._turn_share = _turn_share(self._shape.rotation)
        placed[:, :2] += self.pad
        mask = _framed_mask(person, view, self.pad, picture.shape[:2])
        self.mesh = build_mesh(placed, self._eye_distance, mask, self.pad)
        self._rest3 = self.mesh.rest.astype(np.float64)
        self._origin = self._shape.origin + (self.pad, self.pad, 0.0)
        self.texture = pack_rgb(padded)
        self._source = np.ascontiguousarray(self.mesh.rest[:, :2])
        inner = slice(self.pad, -self.pad) if self.pad else slice(None)
        self.portrait = np.ascontiguousarray(padded[inner, inner])
        self._out = np.empty_like(self.portrait)
        self._points = placed
        self._eyes = [_Eyeball.of(padded, placed, eye) for eye in EYES]
        self._mouth = _Mouth.of(padded, placed, self._shape)
        self.rest = self._shape.rest

    def render(
        self, coefficients: Floats, pose: Floats, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Draw ``coefficients`` (52,) absolute, 0..1, and ``pose`` (6,) relative to the portrait.

        ``pose`` is a rotation vector (radians) and a translation (eye distances), axes x right,
        y up, z to the viewer. Returns (H, W, 3) uint8 RGB: ``out`` if given, else a buffer that
        the next call overwrites.
        """
        out = self._out if out is None else out
        face = self._shape.deform(np.asarray(coefficients, np.float32))
        turn, shift, grow = _bounded(np.asarray(pose, np.float64), self._turn_share)
        target = self.project(face, turn, shift, grow)
        out[...] = self.portrait
        draw_triangles(
            self.mesh.triangles,
            target[: len(self._source)],
            self._source,
            self.texture,
            float(self.pad),
            out,
        )
        rigid = self._rigid(turn, shift, grow)
        self._mouth.draw(self, face, target, turn, rigid, out)
        for eyeball in self._eyes:
            eyeball.draw(target, rigid, np.asarray(coefficients), self.rest, out)
        return out

    def decode(self, latents: Floats) -> Iterator[NDArray[np.uint8]]:
        """Motion latents (T, 58) → T frames; each is valid until the next is asked for."""
        coefficients, poses = from_motion(np.asarray(latents, np.float32), self.rest)
        for actions, pose in zip(coefficients, poses, strict=True):
            yield self.render(actions, pose)

    def vertices(self, coefficients: Floats, pose: Floats) -> Floats:
        """(V, 2): where the mesh's vertices come to lie, in pixels of the frame."""
        turn, shift, grow = _bounded(np.asarray(pose, np.float64), self._turn_share)
        face = self._shape.deform(np.asarray(coefficients, np.float32))
        return self.project(face, turn, shift, grow)[: len(self._source)]

    def project(
        self, face: Floats, turn: NDArray[np.float64], shift: NDArray[np.float64], grow: float
    ) -> Floats:
        """Head-frame points (478, 3) → (V + 10, 2) pixels: the mesh's, then the irises'."""
        shape = self._shape
        offset = self._eye_distance * ((face - shape.points) @ shape.rotation.T)
        moved = self._rest3.copy()
        moved[:468] += offset[:468]
        moved[468:] += self.mesh.pull @ offset[OVAL]
        everything = np.concatenate([moved, self._points[468:] + offset[468:]])
        follow = np.append(self.mesh.follow, np.ones(10))[:, None]
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

    def _rigid(self, turn: NDArray[np.float64], shift: NDArray[np.float64], grow: float) -> _Rigid:
        return _Rigid(turn * grow, self._origin, shift * self._eye_distance, float(self.pad))


@dataclass(frozen=True)
class _Rigid:
    """The head's own movement: padded resting pixels (x, y, z) → pixels of the frame."""

    turn: NDArray[np.float64]
    origin: NDArray[np.float64]
    shift: NDArray[np.float64]
    pad: float

    def from_frame(self, depth: float) -> NDArray[np.float64]:
        """(2, 3): frame pixels → resting padded pixels, for a plane at ``depth``."""
        forward = np.zeros((2, 3))
        forward[:, :2] = self.turn[:2, :2]
        at = self.turn[:2, 2] * (depth - self.origin[2])
        forward[:, 2] = (
            at - self.turn[:2, :2] @ self.origin[:2] + self.origin[:2] + self.shift[:2] - self.pad
        )
        inverse: NDArray[np.float64] = cv2.invertAffineTransform(forward)
        return inverse


@dataclass(frozen=True)
class _Eyeball:
    """One eye of the portrait, carried on under the lids."""

    eye: Eye
    texture: Packed
    corner: NDArray[np.float64]
    iris: NDArray[np.float64]
    width: float
    depth: float

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, eye: Eye) -> _Eyeball:
        ring = points[eye.ring, :2]
        width = float(np.linalg.norm(points[eye.corners[0], :2] - points[eye.corners[1], :2]))
        margin = 0.35 * width + 3.0
        height, full = padded.shape[:2]
        low = np.maximum(np.floor(ring.min(axis=0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(ring.max(axis=0) + margin), (full, height)).astype(int)
        patch = np.ascontiguousarray(padded[low[1] : high[1], low[0] : high[0]])
        open_ = _distance_inside(ring - low, patch.shape[:2])
        # What the lids hide is not in the picture: continue the eye's own colours. The rim is left
        # out of what is continued, for lashes and lid colour would smear.
        hidden = (open_ < 1.0).astype(np.uint8)
        continued = cv2.inpaint(patch, hidden, 3, cv2.INPAINT_TELEA) if hidden.min() == 0 else patch
        keep = np.clip(open_ + 1.0, 0.0, 1.0)[..., None]
        blended = continued * (1.0 - keep) + patch * keep
        rim = points[eye.iris[1:], :2]
        centre = points[eye.iris[0], :2]
        radius = float(np.linalg.norm(rim - centre, axis=1).mean())
        return cls(
            eye=eye,
            texture=pack_rgb(blended.round().astype(np.uint8)),
            corner=low.astype(np.float64),
            iris=np.array([*(centre - low), max(radius, 1.0)]),
            width=width,
            depth=float(points[eye.ring, 2].mean()),
        )

    def draw(
        self, target: Floats, rigid: _Rigid, now: Floats, rest: Floats, out: NDArray[np.uint8]
    ) -> None:
        ring = np.ascontiguousarray(target[self.eye.ring])
        matrix = rigid.from_frame(self.depth)
        matrix[:, 2] -= self.corner
        look = _gaze(now, self.eye.side) - _gaze(rest, self.eye.side)
        shift = look * self.width * np.array([GAZE_ACROSS, GAZE_UPDOWN])
        draw_eye(ring, self.texture, matrix, self.iris, shift, out)


def _gaze(actions: Floats, side: str) -> NDArray[np.float64]:
    """(2,): where an eye looks, picture axes: right and down positive, about -1..1."""
    value = {
        way: float(actions[ACTIONS.index(f"eyeLook{way}{side}")])
        for way in ("In", "Out", "Up", "Down")
    }
    # The subject's left eye lies right in the picture: outwards is to the right.
    across = value["Out"] - value["In"]
    return np.array([across if side == "Left" else -across, value["Down"] - value["Up"]])


@dataclass(frozen=True)
class _Mouth:
    """Teeth, tongue and dark, tinted to the portrait, and what the portrait itself shows."""

    upper: Packed
    lower: Packed
    window: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: float
    cavity: NDArray[np.float64]
    tint: NDArray[np.float64]
    own: Packed
    own_corner: NDArray[np.float64]
    own_depth: float
    own_gap: float
    jaw_rest: float

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, shape: FaceShape) -> _Mouth:
        textures = face_basis().textures
        head = shape.points
        upper, lower = head[UPPER_ROWS[0]], head[LOWER_ROWS[0]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0.0)
        middle = slice(2, 7)
        centre = upper[middle].mean(axis=0)
        centre[1] += UPPER_SHARE * gap[middle].mean()
        width = float(np.linalg.norm(head[MOUTH_CORNERS[0]] - head[MOUTH_CORNERS[1]]))
        shows = float(gap[middle].mean()) > OWN_MOUTH_GAP
        own, corner = _own_mouth(padded, points) if shows else (np.zeros((1, 1), np.uint32), None)
        jaw = face_basis().basis[ACTIONS.index("jawOpen"), 152, 1] * shape.rest[_JAW]
        return cls(
            upper=_pack_rgba(textures["teeth_upper"]),
            lower=_pack_rgba(textures["teeth_lower"]),
            window=textures["mouth_window"].astype(np.float64),
            centre=centre.astype(np.float64),
            scale=float(np.clip(width / CANONICAL_MOUTH_WIDTH, 0.8, 1.15)),
            cavity=_cavity_colour(padded, points),
            tint=_tooth_colour(padded, points) / 255.0,
            own=own,
            own_corner=np.zeros(2) if corner is None else corner,
            own_depth=float(points[UPPER_ROWS[0], 2].mean()),
            own_gap=float(gap[middle].mean()),
            jaw_rest=float(head[152, 1] - jaw),
        )

    def draw(
        self,
        renderer: PortraitRenderer,
        face: Floats,
        target: Floats,
        turn: NDArray[np.float64],
        rigid: _Rigid,
        out: NDArray[np.uint8],
    ) -> None:
        ring = np.ascontiguousarray(target[MOUTH_RING])
        gap = float((face[LOWER_ROWS[0], 1] - face[UPPER_ROWS[0], 1])[2:7].mean())
        if np.ptp(ring[:, 1]) < 0.5:
            return
        shape = renderer._shape
        x0, x1, y0, y1 = self.window * self.scale
        rows, columns = self.upper.shape
        # Texels → head frame → frame pixels, for the plane just behind the lips; then inverted.
        axes = shape.eye_distance * (rigid.turn @ shape.rotation)[:2]
        texel = np.array([(x1 - x0) / columns, (y1 - y0) / rows])
        start = self.centre + (x0, y0, 0.03)
        forward = np.zeros((2, 3))
        forward[:, :2] = axes[:, :2] * texel
        forward[:, 2] = axes @ start + renderer._origin[:2] + rigid.shift[:2] - rigid.pad
        to_own = rigid.from_frame(self.own_depth)
        to_own[:, 2] -= self.own_corner
        # The jaw carries the lower teeth; a part of its way is the turn about its joint.
        drop = max(0.0, float(face[152, 1]) - self.jaw_rest) * 0.9 / texel[1]
        opened = max(0.0, gap - self.own_gap) * shape.eye_distance
        draw_mouth(
            ring,
            cv2.invertAffineTransform(forward),
            self.upper,
            self.lower,
            drop,
            self.cavity,
            self.tint,
            max(1.5, 0.045 * shape.eye_distance),
            self.own,
            to_own,
            1.5 - min(3.0, 0.75 * opened),
            out,
        )


_JAW = ACTIONS.index("jawOpen")


def _turn_share(rotation: NDArray[np.float64]) -> float:
    """How much of a head turn a portrait that itself stands at ``rotation`` (3, 3) can bear."""
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
    return rotation_matrix(turn), shift * (1.0, 1.0, 0.0), grow


def _framed_mask(person: Floats, view: Frame, pad: int, shape: tuple[int, ...]) -> Floats:
    whole = cv2.resize(person, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(view.cut(whole, pad), np.float32)


def _distance_inside(ring: Floats, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(H, W): signed distance of each pixel centre to a closed polygon, positive inside."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    return distances_inside(ring.astype(np.float64), centres).reshape(shape)


def _own_mouth(padded: NDArray[np.uint8], points: Floats) -> tuple[Packed, NDArray[np.float64]]:
    """What shows between the portrait's parted lips; alpha is 128 + 16 x the distance to them."""
    ring = points[MOUTH_RING, :2]
    low = np.maximum(np.floor(ring.min(axis=0)) - 4, 0).astype(int)
    high = np.ceil(ring.max(axis=0)).astype(int) + 4
    patch = padded[low[1] : high[1], low[0] : high[0]]
    distance = _distance_inside(ring - low, patch.shape[:2])
    alpha = np.clip(128 + 16 * distance, 0, 255)[..., None]
    return _pack_rgba(np.concatenate([patch, alpha.astype(np.uint8)], axis=2)), low.astype(float)


def _pack_rgba(picture: NDArray[np.generic]) -> Packed:
    return np.ascontiguousarray(picture, np.uint8).view(np.uint32)[..., 0]


def _tooth_colour(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    """Teeth are about as light as the whites of the eyes, in the portrait's own light."""
    whites = []
    for eye in EYES:
        mask = np.zeros(padded.shape[:2], np.uint8)
        cv2.fillPoly(mask, [points[eye.ring, :2].round().astype(np.int32)], 1)
        whites.append(padded[mask > 0].reshape(-1, 3))
    skin = _mean_around(padded, points[[50, 280, 205, 425], :2])
    pixels = np.concatenate([*whites, skin[None].round().astype(np.uint8)]).astype(np.float64)
    light = pixels @ (0.299, 0.587, 0.114)
    white = pixels[light >= np.quantile(light, 0.85)].mean(axis=0)
    # Never darker than the cheeks, and nearly without their colour.
    level = max(float(white @ (0.299, 0.587, 0.114)), 1.02 * float(skin @ (0.299, 0.587, 0.114)))
    hue = 0.65 * white / max(float(white.mean()), 1.0) + 0.35
    return np.clip(level * 1.04 * hue, 30.0, 245.0)


def _cavity_colour(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    lips = _mean_around(padded, points[[0, 17, 37, 267, 84, 314], :2])
    return np.clip(lips * (0.26, 0.15, 0.15), 6.0, 70.0)


def _mean_around(padded: NDArray[np.uint8], points: Floats) -> NDArray[np.float64]:
    height, width = padded.shape[:2]
    x = np.clip(points[:, 0].round().astype(int), 1, width - 2)
    y = np.clip(points[:, 1].round().astype(int), 1, height - 2)
    patches = [
        padded[b - 1 : b + 2, a - 1 : a + 2].reshape(-1, 3) for a, b in zip(x, y, strict=True)
    ]
    mean: NDArray[np.float64] = np.concatenate(patches).astype(np.float64).mean(axis=0)
    return mean


__all__ = ["ACTION_COUNT", "PortraitRenderer"]
