"""The triangle mesh over a framed portrait: the face's own 468 points, then all around it.

Knows: how the picture around the face is covered with points, how far each of them follows the
head, and that no triangle may be folded at rest. Does not know colours or time.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.conditioning import Floats
from model.motion.geometry import EYES, MOUTH_RING, face_basis

# The outline of MediaPipe's mesh, clockwise from the top of the forehead.
# fmt: off
OVAL = np.array([
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109])
# fmt: on
CHIN, FOREHEAD = 152, 10

# In distances of the outer eye corners:
GRID_STEP = 0.22  # spacing of the points around the face
EXPRESSION_REACH = 0.40  # how far out of the oval the jaw and cheeks still pull the skin
NECK_LENGTH = 1.25  # from the chin down to where the head is hardly followed any more
HAIR_REACH = 1.7  # beyond the oval, what the person mask holds is head (hair, hats) up to here
SOFT_EDGE = 0.75  # over this distance outside the person the background stops following
SHOULDER_SHARE = 0.10  # what of the head's movement the shoulders take part in
# A surface steeper than this along z would fold when the head turns by 15 degrees.
MAX_SLOPE = 3.2


@dataclass(frozen=True)
class PortraitMesh:
    """``rest`` (V, 3) pixels of the framed picture, the first 468 are the face's.

    ``follow`` (V,) share of the head's movement; ``pull`` (V - 468, 36) how the oval's expression
    offsets carry on outside; ``triangles`` (N, 3), ordered from far to near.
    """

    rest: Floats
    triangles: NDArray[np.int32]
    follow: Floats
    pull: Floats


def build_mesh(
    landmarks: Floats, eye_distance: float, person: Floats, pad: int
) -> PortraitMesh:
    """Cover a (H, W) framed picture, padded by ``pad`` pixels on each side, with a mesh.

    ``landmarks`` (478, 3) and ``person`` (H + 2 pad, W + 2 pad) 0..1 are in padded pixels.
    """
    height, width = person.shape
    face = landmarks[:468].astype(np.float64).copy()
    triangles = face_basis().triangles.astype(np.int64)
    triangles = _counter_oriented(triangles)
    face[:, :2] = _unfold(face[:, :2], triangles)
    around = _points_around(face[OVAL, :2], width, height, GRID_STEP * eye_distance)
    points = np.concatenate([face[:, :2], around])
    outer = _triangulate_outside(points, width, height)
    distance, pull = _pull(around, face[OVAL, :2], EXPRESSION_REACH * eye_distance)
    depth = np.concatenate([face[:, 2], _depth_around(around, face, distance, eye_distance)])
    triangles = np.concatenate([triangles, outer])
    depth = _relax_depth(points, depth, triangles)
    follow = np.ones(len(points))
    follow[468:] = _follow(around, face, distance, person, eye_distance)
    order = np.argsort(-depth[triangles].mean(axis=1), kind="stable")
    return PortraitMesh(
        rest=np.column_stack([points, depth]).astype(np.float32),
        triangles=np.ascontiguousarray(triangles[order], np.int32),
        follow=follow.astype(np.float32),
        pull=pull.astype(np.float32),
    )


def signed_areas(points: NDArray[np.floating], triangles: NDArray[np.integer]) -> Floats:
    """(N,) twice the area of each triangle of (V, 2+) points, positive where not folded."""
    a, b, c = (points[triangles[:, i], :2] for i in range(3))
    ab, ac = b - a, c - a
    areas: Floats = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    return areas


def _counter_oriented(triangles: NDArray[np.int64]) -> NDArray[np.int64]:
    """All triangles with positive area on the canonical face."""
    flipped = signed_areas(face_basis().canonical, triangles) < 0
    out = triangles.copy()
    out[flipped] = out[flipped][:, ::-1]
    return out


def _unfold(points: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.float64]:
    """Move as few points as needed until no triangle of the resting face is folded.

    A head in three-quarter view hides part of its far cheek: there the tracker's points overlap.
    Any placement without folds is a valid texture, so those points relax to their neighbours'
    mean. The lips' and lids' seams, closed to zero area, stay where they are.
    """
    points = points.copy()
    size = np.ptp(points, axis=0).max()
    least = (size * 0.0008) ** 2
    seams = _filling(triangles)
    skin = triangles[~seams]
    neighbours = _neighbours(468, triangles)
    fixed = np.zeros(468, bool)
    fixed[MOUTH_RING] = True
    for eye in EYES:
        fixed[eye.ring] = True
    for _ in range(60):
        bad = signed_areas(points, skin) < least
        if not bad.any():
            break
        moving = np.unique(skin[bad])
        moving = moving[~fixed[moving]]
        means = np.array([points[neighbours[v]].mean(axis=0) for v in moving])
        if len(moving) == 0:
            break
        points[moving] = 0.5 * points[moving] + 0.5 * means
    return points


def _filling(triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which triangles lie wholly inside the mouth's or an eye's opening."""
    inside = np.zeros(len(triangles), bool)
    for ring in (MOUTH_RING, *(eye.ring for eye in EYES)):
        inside |= np.isin(triangles, ring).all(axis=1)
    return inside


def skin_triangles(mesh: PortraitMesh) -> NDArray[np.bool_]:
    """(N,) False for those that only fill the openings of mouth and eyes."""
    return ~_filling(mesh.triangles.astype(np.int64))


def _neighbours(count: int, triangles: NDArray[np.int64]) -> list[list[int]]:
    found: list[set[int]] = [set() for _ in range(count)]
    for a, b, c in triangles:
        found[a] |= {int(b), int(c)}
        found[b] |= {int(a), int(c)}
        found[c] |= {int(a), int(b)}
    return [sorted(s) for s in found]


def _points_around(
    oval: NDArray[np.float64], width: int, height: int, step: float
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
    contour = oval.astype(np.float32).reshape(-1, 1, 2)
    keep = []
    for point, at_edge in zip(grid, edge, strict=True):
        away = np.sqrt(((near - point) ** 2).sum(axis=1).min())
        inside = cv2.pointPolygonTest(contour, (float(point[0]), float(point[1])), True)
        keep.append(at_edge or (inside < 0 and away > 0.62 * step))
    ringed = []
    for ring in rings:
        for point in ring:
            within = 1 < point[0] < width - 2 and 1 < point[1] < height - 2
            outside = -cv2.pointPolygonTest(contour, (float(point[0]), float(point[1])), True)
            if within and outside > 0.02 * step and all(
                ((point - other) ** 2).sum() > (0.25 * step) ** 2 for other in ringed
            ):
                ringed.append(point)
    return np.concatenate([grid[np.array(keep)], np.array(ringed).reshape(-1, 2)])


def _triangulate_outside(
    points: NDArray[np.float64], width: int, height: int
) -> NDArray[np.int64]:
    """Delaunay triangles between the oval and the border, oriented like the face's."""
    index = np.concatenate([OVAL, np.arange(468, len(points))])
    # Subdiv2D identifies points by their rounded place: keep them apart and inside.
    plane = cv2.Subdiv2D((-8, -8, width + 16, height + 16))
    places: dict[int, int] = {}
    for vertex in index:
        x, y = points[vertex]
        places[plane.insert((float(x), float(y)))] = int(vertex)
    lookup = {
        tuple(np.float32(points[v]).tolist()): int(v) for v in index
    }
    found = []
    position = {int(v): i for i, v in enumerate(OVAL)}
    contour = points[OVAL].astype(np.float32).reshape(-1, 1, 2)
    for ax, ay, bx, by, cx, cy in plane.getTriangleList():
        corner = [lookup.get((float(x), float(y))) for x, y in ((ax, ay), (bx, by), (cx, cy))]
        if None in corner:
            continue
        if all(v in position for v in corner):
            middle = ((ax + bx + cx) / 3, (ay + by + cy) / 3)
            if cv2.pointPolygonTest(contour, (float(middle[0]), float(middle[1])), False) >= 0:
                continue
        else:
            middle = ((ax + bx + cx) / 3, (ay + by + cy) / 3)
            if cv2.pointPolygonTest(contour, (float(middle[0]), float(middle[1])), False) > 0:
                continue
        found.append(corner)
    triangles = np.array(found, dtype=np.int64)
    flipped = signed_areas(points, triangles) < 0
    triangles[flipped] = triangles[flipped][:, ::-1]
    return triangles


def _pull(
    around: NDArray[np.float64], oval: NDArray[np.float64], reach: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each outer point to the oval's outline, and its weights on the 36 oval points."""
    contour = oval.astype(np.float32).reshape(-1, 1, 2)
    distance = np.array(
        [max(0.0, -cv2.pointPolygonTest(contour, (float(x), float(y)), True)) for x, y in around]
    )
    squared = ((around[:, None] - oval[None]) ** 2).sum(axis=2)
    near = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / (2 * (0.35 * reach) ** 2))
    near /= near.sum(axis=1, keepdims=True)
    return distance, near * np.exp(-((distance / reach) ** 2))[:, None]


def _depth_around(
    around: NDArray[np.float64],
    face: NDArray[np.float64],
    distance: NDArray[np.float64],
    eye_distance: float,
) -> NDArray[np.float64]:
    """The head curves on behind the oval: its depth carries on outwards, flattening."""
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
    distance: NDArray[np.float64],
    person: Floats,
    eye_distance: float,
) -> NDArray[np.float64]:
    """How far each outer point goes along with the head: hair wholly, shoulders a little."""
    down = face[CHIN, :2] - face[FOREHEAD, :2]
    down /= np.linalg.norm(down)
    below = (around - face[CHIN, :2]) @ down / eye_distance
    neck = 1.0 - _smoothstep(below / NECK_LENGTH + 0.15)
    body = SHOULDER_SHARE * (1.0 - _smoothstep((below - 2.0) / 2.5))
    follow = np.maximum(neck, body)
    away = distance / eye_distance
    follow *= 1.0 - _smoothstep((away - HAIR_REACH) / 1.0) * (below < 0)
    # Outside the person, the still background takes over softly.
    outside = cv2.distanceTransform((person < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    y = np.clip(around[:, 1].round().astype(int), 0, person.shape[0] - 1)
    x = np.clip(around[:, 0].round().astype(int), 0, person.shape[1] - 1)
    beyond = np.minimum(outside[y, x] / eye_distance, away)
    follow *= 1.0 - _smoothstep(beyond / SOFT_EDGE)
    return follow


def _smoothstep(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.clip(x, 0.0, 1.0)
    smooth: NDArray[np.float64] = x * x * (3.0 - 2.0 * x)
    return smooth
