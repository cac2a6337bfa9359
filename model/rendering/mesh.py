"""The triangle mesh over a framed portrait: the face's 468 points, then points around it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import FACE_LANDMARKS
from model.rendering.face_model import (
    CHIN,
    EYES,
    FOREHEAD,
    MOUTH_CORNERS,
    MOUTH_RING,
    face_basis,
    smoothstep,
)
from model.rendering.raster import signed_distances
from model.types import Floats

# The outline of MediaPipe's mesh, clockwise from the top of the forehead.
# fmt: off
OVAL = np.array([
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109])
# fmt: on

# In distances of the outer eye corners:
GRID_STEP = 0.22  # spacing of the points around the face
EXPRESSION_REACH = 0.40  # how far out of the oval the jaw and cheeks still pull the skin
NECK_LENGTH = 1.25  # from the chin down to where the skin hardly follows the head
HAIR_REACH = 1.7  # up to here beyond the oval, the person is head (hair, hats)
NEARBY = 0.35  # within this distance of the person, the mesh follows it fully
SOFT_EDGE = 0.6  # and stops following over this distance
SHOULDER_SHARE = 0.10  # share of the head's movement that the shoulders follow
# A surface steeper than this along z would fold when the head turns by 15 degrees.
MAX_SLOPE = 3.2
# A triangle squeezed below this share of its resting area is smoothed before it folds.
LEAST_AREA = 0.02


@dataclass(frozen=True)
class PortraitMesh:
    """``rest`` (V, 3) pixels of the framed picture; the first 468 are the face's.

    ``follow`` (V,): share of the head's movement; ``pull`` (V - 468, 36): weights of the oval's
    expression offsets outside it; ``triangles`` (N, 3), ordered from far to near.
    """

    rest: Floats
    triangles: NDArray[np.int32]
    follow: Floats
    pull: Floats
    guard: FoldGuard


@dataclass(frozen=True)
class FoldGuard:
    """What `model.rendering.raster.untangle` needs to find folds and smooth them away.

    ``skin`` (N', 3) triangles outside the openings of mouth and eyes; ``least`` (N',) the doubled
    area below which one counts as folded; ``first``, ``neighbours``, ``weights``: adjacency, row by
    row, empty for the border; ``pinned`` (V,): the contours of lips and lids, which define what is
    closed. The weights are mean value coordinates (Floater 2003) of the resting mesh, so relaxing
    does not change the portrait's shape.
    """

    skin: NDArray[np.int32]
    least: Floats
    first: NDArray[np.int32]
    neighbours: NDArray[np.int32]
    weights: Floats
    pinned: NDArray[np.bool_]

    @classmethod
    def of(cls, points: NDArray[np.float64], triangles: NDArray[np.int64]) -> FoldGuard:
        skin = triangles[~_filling(triangles)]
        first, neighbours, weights = _mean_value_weights(points, triangles)
        pinned = np.zeros(len(points), bool)
        for ring in (MOUTH_RING, *(eye.ring for eye in EYES)):
            pinned[ring] = True
        pinned[list(MOUTH_CORNERS)] = False  # they follow the lips
        return cls(
            skin=np.ascontiguousarray(skin, np.int32),
            least=(LEAST_AREA * signed_areas(points, skin)).astype(np.float32),
            first=first,
            neighbours=neighbours,
            weights=weights,
            pinned=pinned,
        )


def build_mesh(landmarks: Floats, *, eye_distance: float, person: Floats, pad: int) -> PortraitMesh:
    """Cover a framed picture (H, W), padded by ``pad`` pixels on each side, with a mesh.

    ``landmarks`` (478, 3) and ``person`` (H + 2 pad, W + 2 pad) 0..1 are in padded pixels.
    """
    height, width = person.shape
    face = landmarks[:FACE_LANDMARKS].astype(np.float64).copy()
    triangles = face_basis().triangles.astype(np.int64)
    triangles = _counter_oriented(triangles)
    face[:, :2] = _unfold(face[:, :2], triangles)
    around = _points_around(
        face[OVAL, :2], width=width, height=height, step=GRID_STEP * eye_distance
    )
    points = np.concatenate([face[:, :2], around])
    outer = _triangulate_outside(points, width, height)
    distance, pull = _pull(around, face[OVAL, :2], EXPRESSION_REACH * eye_distance)
    depth = np.concatenate(
        [face[:, 2], _depth_around(around, face, distance=distance, eye_distance=eye_distance)]
    )
    triangles = np.concatenate([triangles, outer])
    depth = _relax_depth(points, depth, triangles)
    follow = np.ones(len(points))
    follow[FACE_LANDMARKS:] = _follow(
        around, face, distance=distance, person=person, eye_distance=eye_distance, pad=pad
    )
    order = np.argsort(-depth[triangles].mean(axis=1), kind="stable")
    return PortraitMesh(
        rest=np.column_stack([points, depth]).astype(np.float32),
        triangles=np.ascontiguousarray(triangles[order], np.int32),
        follow=follow.astype(np.float32),
        pull=pull.astype(np.float32),
        guard=FoldGuard.of(points, triangles),
    )


def signed_areas(points: NDArray[np.floating], triangles: NDArray[np.integer]) -> Floats:
    """(N,) twice the area of each triangle of (V, 2+) points, positive where not folded."""
    a, b, c = (points[triangles[:, i], :2] for i in range(3))
    ab, ac = b - a, c - a
    areas: Floats = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    return areas


def _counter_oriented(triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """The canonical triangles, wound so that those facing the viewer have a positive area.

    All are wound alike. The few within the canonical lips face away there and must not be turned
    one by one.
    """
    facing = np.median(signed_areas(face_basis().canonical, triangles))
    return triangles if facing > 0 else np.ascontiguousarray(triangles[:, ::-1])


def _unfold(points: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.float64]:
    """Move as few points as needed until no triangle of the resting face is folded.

    A head in three-quarter view hides part of its far cheek, where the tracker's points overlap.
    Any placement without folds is a valid texture: the oval is moved out to the silhouette, and
    folded points relax to their neighbours' mean (Tutte 1963: such an embedding has no folds).
    The contours of lips and lids should stay where they are seen, so they move last.
    """
    points = points.copy()
    skin = triangles[~_filling(triangles)]
    least = (np.ptp(points, axis=0).max() * 0.0012) ** 2
    if not np.any(signed_areas(points, skin) < least):
        return points
    points[OVAL] = _silhouette(points)
    neighbours = _neighbours(FACE_LANDMARKS, triangles)
    contours = np.concatenate([MOUTH_RING, *(eye.ring for eye in EYES)])
    for held in (np.concatenate([OVAL, contours]), OVAL):
        fixed = np.zeros(FACE_LANDMARKS, bool)
        fixed[held] = True
        for _ in range(250):
            bad = signed_areas(points, skin) < least
            moving = np.unique(skin[bad])
            moving = moving[~fixed[moving]]
            if len(moving) == 0:
                break
            for vertex in moving:
                points[vertex] = points[neighbours[vertex]].mean(axis=0)
    return points


def _silhouette(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The oval's 36 points, moved outwards (never inwards) so that it encloses every point.

    They keep their order around the face's centre, so the outline is star-shaped.
    """
    hull = cv2.convexHull(points.astype(np.float32))
    moments = cv2.moments(hull)
    centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    away = points - centre
    radius, angle = np.hypot(*away.T), np.arctan2(away[:, 1], away[:, 0])
    # Clockwise in the picture is by growing angle. Where the tracked outline doubles back, spread
    # its points evenly.
    count = len(OVAL)
    even = angle[OVAL[0]] + 2 * np.pi * np.arange(count) / count
    offset = (angle[OVAL] - even + np.pi) % (2 * np.pi) - np.pi
    grown = np.maximum.accumulate(even + offset)
    shrunk = np.minimum.accumulate((even + offset)[::-1])[::-1]
    around = 0.8 * np.clip((grown + shrunk) / 2, even[0] - 0.1, even[-1] + 0.1) + 0.2 * even
    inner = np.setdiff1d(np.arange(FACE_LANDMARKS), OVAL)
    reach = radius[OVAL].copy()
    for i, direction in enumerate(around):
        apart = np.abs((angle[inner] - direction + np.pi) % (2 * np.pi) - np.pi)
        near = apart < 0.14
        if near.any():
            reach[i] = max(reach[i], 1.06 * float((radius[inner] * np.cos(apart))[near].max()))
    return centre + reach[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)


def _filling(triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which triangles lie wholly in the opening of the mouth or an eye."""
    filling = np.zeros(len(triangles), bool)
    for ring in (MOUTH_RING, *(eye.ring for eye in EYES)):
        filling |= np.isin(triangles, ring).all(axis=1)
    return filling


def _neighbours(count: int, triangles: NDArray[np.int64]) -> list[list[int]]:
    found: list[set[int]] = [set() for _ in range(count)]
    for a, b, c in triangles:
        found[a] |= {int(b), int(c)}
        found[b] |= {int(a), int(c)}
        found[c] |= {int(a), int(b)}
    return [sorted(s) for s in found]


def _mean_value_weights(
    points: NDArray[np.float64], triangles: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
    """Each point's neighbours with weights that sum to 1 and, at rest, give the point itself.

    Returns row starts (V + 1,), neighbours and weights, row by row; points on the border have
    none. Weights are positive: where a ring of neighbours is not star-shaped around its point, an
    exact reproduction would need negative ones, which fold.
    """
    count = len(points)
    turned = np.zeros(count)
    weights = np.zeros((count, count))
    for i in range(3):
        v, a, b = (triangles[:, (i + k) % 3] for k in range(3))
        to_a, to_b = points[a] - points[v], points[b] - points[v]
        long_a = np.maximum(np.hypot(*to_a.T), 1e-3)
        long_b = np.maximum(np.hypot(*to_b.T), 1e-3)
        cos = (to_a * to_b).sum(axis=1) / (long_a * long_b)
        half = np.arccos(np.clip(cos, -1.0, 1.0)) / 2
        np.add.at(turned, v, 2 * half)
        tangent = np.tan(np.minimum(half, 1.5))
        np.add.at(weights, (v, a), tangent / long_a)
        np.add.at(weights, (v, b), tangent / long_b)
    # The angles around an inner point make a full turn; around a border point, half of one.
    weights[turned < 1.5 * np.pi] = 0.0
    rows, columns = np.nonzero(weights)
    shares = weights[rows, columns] / weights.sum(axis=1)[rows]
    first = np.searchsorted(rows, np.arange(count + 1))
    return first.astype(np.int32), columns.astype(np.int32), shares.astype(np.float32)


def _points_around(
    oval: NDArray[np.float64], *, width: int, height: int, step: float
) -> NDArray[np.float64]:
    """A jittered-row grid outside the oval, denser next to it, and the padded picture's border."""
    columns = max(2, round((width - 1) / step)) + 1
    rows = max(2, round((height - 1) / step)) + 1
    xs, ys = np.linspace(0, width - 1, columns), np.linspace(0, height - 1, rows)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    centre = oval.mean(axis=0)
    rings = [centre + (oval - centre) * grow for grow in (1.10, 1.24)]
    edge = (grid[:, 0] == 0) | (grid[:, 0] == xs[-1]) | (grid[:, 1] == 0) | (grid[:, 1] == ys[-1])
    near = np.concatenate([oval, *rings])
    apart = np.sqrt(((grid[:, None] - near[None]) ** 2).sum(axis=2).min(axis=1))
    free = (signed_distances(oval, grid) < 0) & (apart > 0.62 * step)
    chosen = grid[edge | free]
    ring = np.concatenate(rings)
    within = np.all((ring > 1) & (ring < (width - 2, height - 2)), axis=1)
    ring = ring[within & (signed_distances(oval, ring) < -0.02 * step)]
    close = ((ring[:, None] - ring[None]) ** 2).sum(axis=2) <= (0.25 * step) ** 2
    spaced: list[int] = []
    for n, row in enumerate(close):
        if not row[spaced].any():
            spaced.append(n)
    return np.concatenate([chosen, ring[spaced]])


def _triangulate_outside(points: NDArray[np.float64], width: int, height: int) -> NDArray[np.int64]:
    """Delaunay triangles between the oval and the border, oriented like the face's."""
    index = np.concatenate([OVAL, np.arange(FACE_LANDMARKS, len(points))])
    plane = cv2.Subdiv2D((-8, -8, width + 16, height + 16))
    lookup = {}
    for vertex, place in zip(
        index.tolist(), points[index].astype(np.float32).tolist(), strict=True
    ):
        plane.insert(place)
        lookup[place[0], place[1]] = vertex
    corners = np.asarray(plane.getTriangleList()).reshape(-1, 3, 2)
    # Drop Delaunay triangles across the face: the face's own mesh covers it.
    corners = corners[signed_distances(points[OVAL], corners.mean(axis=1).astype(np.float64)) < 0]
    found = []
    for corner in corners.tolist():
        vertices = [lookup.get((x, y)) for x, y in corner]
        if None not in vertices:  # the plane's outer corners are no points of the mesh
            found.append(vertices)
    triangles = np.array(found, dtype=np.int64)
    flipped = signed_areas(points, triangles) < 0
    triangles[flipped] = triangles[flipped][:, ::-1]
    return triangles


def _pull(
    around: NDArray[np.float64], oval: NDArray[np.float64], reach: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each outer point to the oval's outline, and its weights on the 36 oval points."""
    distance = np.maximum(0.0, -signed_distances(oval, around))
    squared = ((around[:, None] - oval[None]) ** 2).sum(axis=2)
    near = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / (2 * (0.35 * reach) ** 2))
    near /= near.sum(axis=1, keepdims=True)
    share = np.exp(-((distance / reach) ** 2))
    return distance, near * np.where(share < 0.01, 0.0, share)[:, None]


def _depth_around(
    around: NDArray[np.float64],
    face: NDArray[np.float64],
    *,
    distance: NDArray[np.float64],
    eye_distance: float,
) -> NDArray[np.float64]:
    """(N,) pixels: the head's depth continues outside the oval and flattens."""
    oval = face[OVAL]
    squared = ((around[:, None] - oval[None, :, :2]) ** 2).sum(axis=2)
    blur = (0.12 * eye_distance + 0.5 * distance[:, None]) ** 2
    near = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / (2 * blur))
    near /= near.sum(axis=1, keepdims=True)
    behind = 0.35 * eye_distance * (1.0 - np.exp(-distance / (0.6 * eye_distance)))
    depth: NDArray[np.float64] = near @ oval[:, 2] + behind
    return depth


def _relax_depth(
    points: NDArray[np.float64], depth: NDArray[np.float64], triangles: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Flatten the depth where a triangle is steeper than `MAX_SLOPE`, and only there."""
    depth = depth.copy()
    areas = np.maximum(signed_areas(points, triangles), 1e-6)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    for _ in range(80):
        za, zb, zc = (depth[triangles[:, i]] for i in range(3))
        gx = ((zb - za) * (c - a)[:, 1] - (zc - za) * (b - a)[:, 1]) / areas
        gy = ((zc - za) * (b - a)[:, 0] - (zb - za) * (c - a)[:, 0]) / areas
        slope = np.hypot(gx, gy)
        steep = slope > MAX_SLOPE
        if not steep.any():
            break
        corners = triangles[steep]
        means = depth[corners].mean(axis=1, keepdims=True)
        shrink = (MAX_SLOPE / slope[steep])[:, None] * 0.98
        wanted = means + (depth[corners] - means) * shrink
        total, count = np.zeros(len(depth)), np.zeros(len(depth))
        np.add.at(total, corners, wanted)
        np.add.at(count, corners, 1)
        touched = count > 0
        depth[touched] = total[touched] / count[touched]
    return depth


def _follow(
    around: NDArray[np.float64],
    face: NDArray[np.float64],
    *,
    distance: NDArray[np.float64],
    person: Floats,
    eye_distance: float,
    pad: int,
) -> NDArray[np.float64]:
    """How far each outer point follows the head: hair fully, shoulders a little."""
    down = face[CHIN, :2] - face[FOREHEAD, :2]
    down /= np.linalg.norm(down)
    below = (around - face[CHIN, :2]) @ down / eye_distance
    neck = 1.0 - smoothstep(below / NECK_LENGTH + 0.15)
    body = SHOULDER_SHARE * (1.0 - smoothstep((below - 2.0) / 2.5))
    follow = np.maximum(neck, body)
    away = distance / eye_distance
    follow *= 1.0 - smoothstep((away - HAIR_REACH) / 1.0) * (below < 0)
    # Points well outside the person do not move.
    outside = cv2.distanceTransform((person < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    y = np.clip(around[:, 1].round().astype(int), 0, person.shape[0] - 1)
    x = np.clip(around[:, 0].round().astype(int), 0, person.shape[1] - 1)
    beyond = np.minimum(outside[y, x] / eye_distance, away)
    follow *= 1.0 - smoothstep((beyond - NEARBY) / SOFT_EDGE)
    # The border of the padded picture is out of view and stands still.
    to_edge = np.minimum(around, (person.shape[1] - 1, person.shape[0] - 1) - around).min(axis=1)
    follow *= smoothstep(to_edge / max(1.0, 0.8 * pad))
    return np.where(follow < 0.002, 0.0, follow)
