"""The mouth's interior, which shows between the lips: teeth, gums, tongue and cavity.

It is prepared once per portrait and drawn over the finished skin, clipped softly to the curve of
the inner lips. `training.mouth_textures` makes ``mouth.safetensors``, which any renderer can draw:

- ``upper``, ``lower`` (72, 252, 5) uint8: a row of teeth with gums, unrolled from the front, 36
  texels an upper incisor. Channels: colour (200: equal to the tint), share of gum, alpha. The tint
  is the portrait's tooth colour, or its gums'. The row's edge lies 1.8 incisors below the upper
  texture's top, or above the lower one's bottom; the midline is its middle column.
- ``upper_depth``, ``lower_depth`` (252,): how far each column lies behind the incisors, in
  distances of the outer eye corners: a strip of quads, or a look-up in a shader.
- ``tongue`` (80, 160, 3) uint8: light (200: the tint), moist highlights (255: the teeth's tint) and
  alpha. It is 0.52 wide; the row `TONGUE_CREST` of it lies where it is highest.

A frame needs few numbers: the head's motion; where the rows' edges and the tongue's tip lie in the
head (``upper_edge`` belongs to the skull, the others follow the jaw by ``drop``); how far the
tongue is raised (`tongue_rise`, 0..1); and the lips' curve, from which shadows and soft edges
follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from model.manifest import WEIGHTS, verified
from model.portrait.blendshapes import ACTIONS
from model.rendering.face_model import (
    CHIN,
    EYES,
    LOWER_ROWS,
    MOUTH_CORNERS,
    MOUTH_RING,
    UPPER_ROWS,
    UPPER_SHARE,
    FaceShape,
    RigidMotion,
    eased,
    face_basis,
)
from model.rendering.mouth_colours import darker, light_tilt, soft_colours, tooth_colour
from model.rendering.mouth_raster import draw_mouth
from model.rendering.own_teeth import View, take_over
from model.rendering.raster import Packed, distance_map, pack_rgba
from model.types import Floats

# The portrait's own teeth show where its lips are further apart than this (eye distances).
OWN_MOUTH_GAP = 0.022
OWN_FADE = 0.006  # it is gone where the lips have moved this far: speech hardly comes as near
OWN_SHADED = 0.35  # of the lips' shadow, for own teeth are in a shadow already
CANONICAL_MOUTH_WIDTH = 0.552  # between the mouth's corners, in eye distances
TEXTURES_FILE = WEIGHTS / "mouth.safetensors"
# As `training.mouth_textures` has them: an incisor in eye distances and in texels; the textures
# reach this many incisors above the edge.
INCISOR, TEXELS, GUM_TOP = 0.0935, 36, 1.8
UPPER_EDGE = 0.024  # the upper teeth end this far below the line where lips meet
TEETH_BEHIND = 0.03  # and lie this far behind it
OVERBITE = 0.012
TONGUE_WIDTH, TONGUE_CREST = 0.52, 0.02 / 0.26
TONGUE_HEIGHT = 0.50  # above the lower teeth, of the jaw's drop
DEPTH_SHADE = 2.5
SHARP, SOFTEST = 1.0, 0.93  # pixels: as sharp as the textures; the softest edges that are matched
TONGUE_ACTIONS = [
    ACTIONS.index(name) for name in ("jawOpen", "mouthFunnel", "mouthPucker", "tongueOut")
]


@cache
def mouth_textures() -> dict[str, NDArray[np.generic]]:
    """What `training.mouth_textures` makes, read once per process."""
    return dict(load_file(verified(TEXTURES_FILE)))


@dataclass(frozen=True)
class Mouth:
    """Teeth, tongue and cavity in the portrait's colours, and the mouth that the portrait shows.

    For upper teeth, lower teeth and tongue: ``sizes`` (3, 1, 1) of a texel in eye distances, and
    ``anchors`` (3, 2, 1), the texel that lies at the edge or the tip. ``rest_ring`` (20, 2): the
    inner lips at rest in the head. ``soft``: the standard deviation, in pixels, of the blur that
    makes the textures as soft as the portrait.
    """

    shape: FaceShape
    upper: Packed
    lower: Packed
    tongue: Packed
    own: Packed
    own_corner: NDArray[np.float64]
    own_depth: float
    own_gap: float
    depths: NDArray[np.float64]
    upper_edge: NDArray[np.float64]
    lower_edge: NDArray[np.float64]
    sizes: NDArray[np.float64]
    anchors: NDArray[np.float64]
    rest_ring: Floats
    colours: NDArray[np.float64]
    gloss: float
    light: float
    jaw_rest: float
    shaded: float
    soft: float

    @classmethod
    def of(cls, padded: NDArray[np.uint8], points: Floats, shape: FaceShape) -> Mouth:
        textures = mouth_textures()
        head = shape.points
        upper, lower = head[UPPER_ROWS[0]], head[LOWER_ROWS[0]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0.0)
        middle = slice(2, 7)
        meet = upper[middle].mean(axis=0)
        meet[1] += UPPER_SHARE * gap[middle].mean()
        width = float(np.linalg.norm(head[MOUTH_CORNERS[0]] - head[MOUTH_CORNERS[1]]))
        scale = float(np.clip(width / CANONICAL_MOUTH_WIDTH, 0.85, 1.12))
        # A texel a pixel, or teeth would flicker as the head moves.
        size = INCISOR * scale * shape.eye_distance / TEXELS
        shrink = float(min(1.0, 1.15 * size))
        tooth, (gum, lip) = tooth_colour(padded, points), soft_colours(padded, points)
        shows = float(gap[middle].mean()) > OWN_MOUTH_GAP
        own, corner = _own_mouth(padded, points)
        jaw = ACTIONS.index("jawOpen")
        dropped = face_basis().basis[jaw, CHIN, 1] * shape.rest[jaw]
        depths = np.stack(
            [
                cv2.resize(textures[name].astype(np.float64)[None] * scale, None, fx=shrink, fy=1)[
                    0
                ]
                for name in ("upper_depth", "lower_depth")
            ]
        )
        texels = TEXELS * depths.shape[1] / len(textures["upper_depth"])
        edge = meet + (0.0, UPPER_EDGE, TEETH_BEHIND)
        gain, moved, shaded, own_teeth = np.ones(3), 0.0, 1.0, False
        soft = _softness(padded, points)
        tilt = light_tilt(padded, points)
        upper_colour, upper_alpha = _coloured(
            textures["upper"], tooth, gum, depth=depths[0], tilt=tilt
        )
        if shows:
            # Room for teeth that reach further down.
            more = ((0, round(1.2 * texels)), (0, 0))
            upper_colour = np.pad(upper_colour, (*more, (0, 0)), mode="edge")
            upper_alpha = np.pad(upper_alpha, more)
            view = _view(
                padded,
                points,
                shape=shape,
                edge=edge,
                depth=depths[0],
                rows=len(upper_alpha),
                texel=INCISOR * scale / texels,
                texels=texels,
            )
            found = take_over(view, upper_colour, upper_alpha, tooth=tooth, texels=texels)
            if found is not None:
                upper_colour, upper_alpha, gain = found.colour, found.alpha, found.gain
                moved = found.moved * INCISOR * scale / texels
                shaded, own_teeth = OWN_SHADED, True
        lower = _coloured(
            textures["lower"],
            np.clip(tooth * gain, 20.0, 250.0),
            gum,
            depth=depths[1],
            tilt=tilt,
        )
        tongue = _packed(*_tongue(textures["tongue"], gum, tooth, shrink=shrink), soft=soft)
        texel, wide = INCISOR * scale / texels, TONGUE_WIDTH * scale / tongue.shape[1]
        middle_column, above = depths.shape[1] / 2, GUM_TOP * texels
        anchors = [
            (middle_column, above),
            (middle_column, lower[1].shape[0] - above),
            (tongue.shape[1] / 2, TONGUE_CREST * tongue.shape[0]),
        ]
        return cls(
            shape=shape,
            upper=_packed(upper_colour, upper_alpha, soft=0.0 if own_teeth else soft),
            lower=_packed(*lower, soft=soft),
            tongue=tongue,
            own=own,
            own_corner=corner,
            own_depth=float(points[UPPER_ROWS[0], 2].mean()),
            own_gap=float(gap[middle].mean()),
            depths=depths,
            upper_edge=edge,
            lower_edge=edge + (0.0, moved - OVERBITE, 0.02),
            sizes=np.array([texel, texel, wide])[:, None, None],
            anchors=np.array(anchors)[..., None],
            rest_ring=head[MOUTH_RING, :2],
            colours=np.stack([darker(lip, 0.40), darker(lip, 0.15)]),
            gloss=0.07 * float(tooth.mean()),
            light=0.5 + 0.5 * tilt,
            jaw_rest=float(head[CHIN, 1] - dropped),
            shaded=shaded,
            soft=soft,
        )

    def draw(
        self,
        face: Floats,
        target: Floats,
        rigid: RigidMotion,
        *,
        now: Floats,
        out: NDArray[np.uint8],
    ) -> None:
        ring = target[MOUTH_RING].astype(np.float64)
        if ring[:, 1].max() - ring[:, 1].min() < 0.5:
            return
        gaps = face[LOWER_ROWS[0], 1] - face[UPPER_ROWS[0], 1]
        gap, widest = float(gaps[2:7].mean()), float(gaps.max())
        shape, unit = self.shape, self.shape.eye_distance
        drop = max(0.0, float(face[CHIN, 1]) - self.jaw_rest)
        axes = unit * (rigid.turn @ shape.rotation)[:2]
        zero = rigid.origin[:2] + rigid.shift[:2] - rigid.pad
        rise = tongue_rise(now)
        edges = np.array([self.upper_edge, self.lower_edge, self.lower_edge])
        edges[1:, 1] += drop
        edges[1:, 2] += 0.25 * drop
        low = float(edges[1, 1]) - 0.016 - TONGUE_HEIGHT * drop
        high = float(edges[0, 1]) - 0.03
        edges[2, 1] = low + rise * (min(low, high) - low)
        edges[2, 2] += 0.08 - 0.05 * rise
        # Where each texture's own origin, a point of it in texels, lies in the head.
        (a, b), (c, d) = axes[:, :2].tolist()
        inverse = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
        places = np.zeros((4, 2, 3))
        places[:3, :, :2] = inverse / self.sizes
        seen = edges @ axes.T + zero
        places[:3, :, 2:] = self.anchors - places[:3, :, :2] @ seen[..., None]
        # Texels a unit of depth: a point behind the plane is seen where the plane's own is not.
        leans = -places[:2, :, :2] @ axes[:, 2]
        opened = max(0.0, gap) * unit
        changed = float(np.abs(face[MOUTH_RING, :2] - self.rest_ring).max())
        own_share = 1.0 - eased(changed / OWN_FADE)
        if own_share > 0.0:
            places[3] = rigid.from_frame(self.own_depth)
            places[3, :, 2] -= self.own_corner
        numbers = np.array(
            [
                max(1.2, 0.010 * unit, 2.5 * self.soft),  # about a blurred edge's
                max(1.5, 0.07 * unit),
                max(1.5, min(0.055 * unit, 0.6 * opened)),
                max(0.8, min(0.024 * unit, 0.09 * opened)),
                1.0 - 0.12 * self.shaded * (1.0 - eased(gap / 0.10)),
                own_share,
                self.gloss,
                self.light,
                0.75 + 0.15 * rise,
                eased(widest * unit / 1.5),  # lips that meet hide all
                0.26 * self.shaded,
            ]
        )
        draw_mouth(
            ring,
            self.upper,
            self.lower,
            self.tongue,
            self.own,
            places,
            leans,
            self.depths,
            self.colours,
            numbers,
            out,
        )


def tongue_rise(now: Floats) -> float:
    """How far the tongue is raised, 0 (it lies behind the lower teeth) to 1 (at the upper ones).

    Coefficients do not say it, except tongueOut: a jaw that is little open with spread or relaxed
    lips is typical of /l th d t n/ and of front vowels, a wide or rounded mouth of a low tongue.
    """
    jaw, funnel, pucker, out = now[TONGUE_ACTIONS].tolist()
    low = eased((jaw - 0.05) / 0.35)
    return min(1.0, 0.7 * (1.0 - low) * max(0.0, 1.0 - 1.5 * (funnel + pucker)) + out)


def _coloured(
    row: NDArray[np.generic],
    tooth: NDArray[np.float64],
    gum: NDArray[np.float64],
    *,
    depth: NDArray[np.float64],
    tilt: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A row of teeth in the portrait's colours (H, W, 3) and its alpha (H, W), W as ``depth``'s."""
    size = (len(depth), round(row.shape[0] * len(depth) / row.shape[1]))
    alpha = row[..., 4].astype(np.float64)
    weighted = row[..., :4].astype(np.float64) * (alpha[..., None] + 1.0)
    small = cv2.resize(weighted, size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    small /= alpha[..., None] + 1.0
    gums, colour = small[..., 3:] / 255.0, small[..., :3] / 200.0
    grey = colour.mean(axis=2, keepdims=True)
    hue = float(np.clip(np.ptp(gum) / 40.0, 0.0, 1.0))
    colour = grey + hue * (colour - grey)
    colour = colour * (tooth * (1.0 - gums) + gum * gums)
    shade = (1.0 + tilt * np.linspace(-1.0, 1.0, len(depth))) / (1.0 + DEPTH_SHADE * depth)
    return np.clip(colour * shade[:, None], 0.0, 255.0), alpha / 255.0


def _tongue(
    tongue: NDArray[np.generic],
    gum: NDArray[np.float64],
    tooth: NDArray[np.float64],
    *,
    shrink: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Its colours (H, W, 3) and alpha (H, W)."""
    small = cv2.resize(
        tongue.astype(np.float64), None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA
    )
    light, moist, alpha = (small[..., i : i + 1] for i in range(3))
    flesh = 0.75 * gum + 0.25 * darker(gum, 0.9)
    colour = light / 200.0 * flesh + 0.35 * moist / 255.0 * tooth
    return np.clip(colour, 0.0, 255.0), alpha[..., 0] / 255.0


def _packed(colour: NDArray[np.float64], alpha: NDArray[np.float64], *, soft: float) -> Packed:
    """Premultiplied, and ``soft`` as in `Mouth`."""
    whole = np.concatenate([colour * alpha[..., None], alpha[..., None] * 255.0], axis=2)
    if soft > 0.0:
        whole = cv2.GaussianBlur(whole, (0, 0), soft, borderType=cv2.BORDER_REPLICATE)
    return pack_rgba(np.clip(np.round(whole), 0, 255))


def _softness(padded: NDArray[np.uint8], points: Floats) -> float:
    """See `Mouth.soft`: from what a further blur leaves of the steepest edges around the eyes.

    An edge blurred by s is steep as 1/s, and as 1/√(s² + 1) once blurred by a pixel more.
    """
    left = []
    for eye in EYES:
        ring = points[eye.ring, :2]
        edge = 0.3 * float(np.ptp(ring[:, 0]))
        low = np.maximum(ring.min(axis=0) - edge, 0).astype(int)
        high = np.ceil(ring.max(axis=0) + edge).astype(int)
        part = padded[low[1] : high[1], low[0] : high[0]]
        light = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY).astype(np.float32)
        steep, less = _slopes(light), _slopes(cv2.GaussianBlur(light, (0, 0), 1.0))
        edges = steep >= np.quantile(steep, 0.9)
        left.append(float(less[edges].mean() / max(steep[edges].mean(), 1e-3)))
    kept = min(float(np.mean(left)), SOFTEST)
    return float(np.sqrt(max(0.0, kept**2 / (1.0 - kept**2) - SHARP**2)))


def _slopes(light: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1))


def _view(
    padded: NDArray[np.uint8],
    points: Floats,
    *,
    shape: FaceShape,
    edge: NDArray[np.float64],
    depth: NDArray[np.float64],
    rows: int,
    texel: float,
    texels: float,
) -> View:
    """The portrait in the frame of the upper row's texture."""
    v, u = np.mgrid[:rows, : len(depth)] + 0.5
    head = np.stack(
        [
            edge[0] + (u - len(depth) / 2) * texel,
            edge[1] + (v - GUM_TOP * texels) * texel,
            edge[2] + np.broadcast_to(depth, u.shape),
        ],
        axis=-1,
    )
    # The mouth's points have moved with the padding; the head frame has not.
    pad = points[:, :2].mean(axis=0) - (
        shape.eye_distance * shape.points @ shape.rotation.T + shape.origin
    )[:, :2].mean(axis=0)
    at = (shape.eye_distance * head @ shape.rotation.T)[..., :2] + shape.origin[:2] + pad
    ring = points[MOUTH_RING, :2]
    low = np.maximum(np.floor(ring.min(axis=0)) - 4, 0).astype(int)
    size = np.ceil(ring.max(axis=0)).astype(int) + 4 - low
    distance = distance_map(ring - low, (int(size[1]), int(size[0])))
    x, y = (at[..., 0] - 0.5).astype(np.float32), (at[..., 1] - 0.5).astype(np.float32)
    picture = cv2.remap(padded, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.remap(
        distance,
        x - np.float32(low[0]),
        y - np.float32(low[1]),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    scale = 1.0 / (texel * shape.eye_distance)
    return View(picture.astype(np.float64), inside.astype(np.float64) * scale)


def _own_mouth(padded: NDArray[np.uint8], points: Floats) -> tuple[Packed, NDArray[np.float64]]:
    """The portrait's own open mouth and its upper left corner.

    Its alpha is 128 + 16 x the signed distance to the lips, in pixels.
    """
    ring = points[MOUTH_RING, :2]
    low = np.maximum(np.floor(ring.min(axis=0)) - 4, 0).astype(int)
    high = np.ceil(ring.max(axis=0)).astype(int) + 4
    patch = padded[low[1] : high[1], low[0] : high[0]]
    distance = distance_map(ring - low, patch.shape[:2])
    alpha = np.clip(128 + 16 * distance, 0, 255)[..., None]
    return pack_rgba(np.concatenate([patch, alpha.astype(np.uint8)], axis=2)), low.astype(float)
