"""Compiled drawing kernels: textured triangles and eyeballs.

Numba compiles these on first use and caches the result.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Packed = NDArray[np.uint32]

BAND = 64  # rows: a quarter of a megabyte between two passes at 512 pixels


def pack_rgb(picture: NDArray[np.uint8]) -> Packed:
    """(H, W, 3) RGB → (H, W) packed, opaque."""
    height, width = picture.shape[:2]
    wide = np.full((height, width, 4), 255, np.uint8)
    wide[..., :3] = picture
    return pack_rgba(wide)


def pack_rgba(picture: NDArray[np.generic]) -> Packed:
    """(H, W, 4) RGBA, 0..255 → (H, W) packed."""
    return np.ascontiguousarray(picture, np.uint8).view(np.uint32)[..., 0]


@njit(cache=True, nogil=True, inline="always")
def _bilinear(texture, x, y):  # type: ignore[no-untyped-def]
    """Packed colour at 24.8 fixed-point texel coordinates, clamped to the edge."""
    height, width = texture.shape
    xi, yi = x >> 8, y >> 8
    fx, fy = np.uint32(x & 255), np.uint32(y & 255)
    if xi < 0:
        xi, fx = 0, np.uint32(0)
    elif xi > width - 2:
        xi, fx = width - 2, np.uint32(255)
    if yi < 0:
        yi, fy = 0, np.uint32(0)
    elif yi > height - 2:
        yi, fy = height - 2, np.uint32(255)
    return _mix(texture, np.uint64(xi), np.uint64(yi), fx, fy)


@njit(cache=True, nogil=True, inline="always")
def _mix(texture, xi, yi, fx, fy):  # type: ignore[no-untyped-def]
    """Bilinear mix of four texels; unsigned indices spare the check for negative ones."""
    step = np.uint64(1)
    a, b = texture[yi, xi], texture[yi, xi + step]
    c, d = texture[yi + step, xi], texture[yi + step, xi + step]
    low, one = np.uint32(0x00FF00FF), np.uint32(256)
    gx, gy = one - fx, one - fy
    eight = np.uint32(8)
    # Two channels at a time in one word: red and blue, then green and alpha.
    top = (((a & low) * gx + (b & low) * fx) >> eight) & low
    bottom = (((c & low) * gx + (d & low) * fx) >> eight) & low
    red_blue = ((top * gy + bottom * fy) >> eight) & low
    top = ((((a >> eight) & low) * gx + ((b >> eight) & low) * fx) >> eight) & low
    bottom = ((((c >> eight) & low) * gx + ((d >> eight) & low) * fx) >> eight) & low
    green = (top * gy + bottom * fy) & ~low
    return red_blue | green


def drawable(packed: Packed) -> Packed:
    """A texture for `draw_triangles`: two clear rows below serve pixels outside all triangles."""
    return np.pad(packed, ((0, 2), (0, 0)))


@njit(cache=True, nogil=True)
def draw_triangles(triangles, target, source, texture, out):  # type: ignore[no-untyped-def]
    """Draw each triangle of ``target`` (V, 2) filled with ``texture`` at ``source`` (V, 2).

    ``source`` is in texture pixels, ``target`` in pixels of ``out`` (H, W, 3). The colours of the
    texture (`drawable`) are premultiplied by its alpha and drawn over what is there. Shared edges
    are drawn exactly once, so that neighbours neither overlap nor leave a gap; where triangles
    overlap the last one is seen.

    Two passes, because the compiler vectorises only straight loops: the first finds each pixel's
    place in the texture, triangle by triangle; the second its colour, row by row. They run band by
    band, so that intermediate values stay in the core's own cache: other sessions and the network
    compete for the shared one.
    """
    height, width = out.shape[0], out.shape[1]
    texel = np.empty((BAND, width), np.int32)
    share = np.empty((BAND, width), np.int32)
    lefts, rights = np.empty(BAND, np.int64), np.empty(BAND, np.int64)
    for first in range(0, height, BAND):
        rows = min(BAND, height - first)
        some = texel[:rows]
        lefts[:], rights[:] = width, 0
        _find_texels(triangles, target, source, texture, first, some, share, lefts, rights)
        _paint_texels(texture, some, share, lefts, rights, out[first : first + rows])


@njit(cache=True, nogil=True, inline="always")
def _edge(x1, ya, x2, yb):  # type: ignore[no-untyped-def]
    """Top, bottom, x at the top and slope; the edge's direction does not change them."""
    if ya == yb:
        return 1e9, -1e9, 0.0, 0.0
    if ya < yb:
        return np.float64(ya), np.float64(yb), np.float64(x1), np.float64((x2 - x1) / (yb - ya))
    return np.float64(yb), np.float64(ya), np.float64(x2), np.float64((x1 - x2) / (ya - yb))


@njit(cache=True, nogil=True)
def _find_texels(  # type: ignore[no-untyped-def]
    triangles, target, source, texture, first, texel, share, lefts, rights
):
    """Which texel (flat index of the upper left of four) each pixel shows, and its shares.

    ``share`` holds how far right of it, in 1/256 in the low byte, and how far below, in the next.
    ``lefts`` and ``rights`` are each row's extent. Row 0 of all of them is row ``first`` of the
    picture.
    """
    height, width = texel.shape
    last = first + height
    deep, wide = texture.shape[0] - 2, np.int32(texture.shape[1])
    last_u, last_v = np.int32((wide - 1) * 65536 - 1), np.int32((deep - 1) * 65536 - 1)
    texel[:, :] = np.int32(deep * wide)  # nothing
    none = np.int32(0)
    for n in range(triangles.shape[0]):
        i, j, k = triangles[n, 0], triangles[n, 1], triangles[n, 2]
        ax, ay, bx, by = target[i, 0], target[i, 1], target[j, 0], target[j, 1]
        cx, cy = target[k, 0], target[k, 1]
        top, bottom = min(ay, by, cy), max(ay, by, cy)
        y0, y1 = max(first, int(np.ceil(top - 0.5))), min(last, int(np.ceil(bottom - 0.5)))
        if y0 >= y1:
            continue
        sax, say, sbx, sby = source[i, 0], source[i, 1], source[j, 0], source[j, 1]
        scx, scy = source[k, 0], source[k, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-6:
            continue
        # Affine map from the target's plane to the texture's.
        dudx = ((sbx - sax) * (cy - ay) - (scx - sax) * (by - ay)) / area
        dudy = ((scx - sax) * (bx - ax) - (sbx - sax) * (cx - ax)) / area
        dvdx = ((sby - say) * (cy - ay) - (scy - say) * (by - ay)) / area
        dvdy = ((scy - say) * (bx - ax) - (sby - say) * (cx - ax)) / area
        du, dv = np.int32(dudx * 65536.0), np.int32(dvdx * 65536.0)
        top_a, end_a, from_a, slope_a = _edge(ax, ay, bx, by)
        top_b, end_b, from_b, slope_b = _edge(bx, by, cx, cy)
        top_c, end_c, from_c, slope_c = _edge(cx, cy, ax, ay)
        for y in range(y0, y1):
            py = y + 0.5
            left, right = 1e9, -1e9
            if top_a <= py < end_a:
                x = from_a + (py - top_a) * slope_a
                left, right = min(left, x), max(right, x)
            if top_b <= py < end_b:
                x = from_b + (py - top_b) * slope_b
                left, right = min(left, x), max(right, x)
            if top_c <= py < end_c:
                x = from_c + (py - top_c) * slope_c
                left, right = min(left, x), max(right, x)
            xs, xe = max(0, int(np.ceil(left - 0.5))), min(width, int(np.ceil(right - 0.5)))
            if xs >= xe:
                continue
            row = np.uint64(y - first)
            lefts[row], rights[row] = min(lefts[row], xs), max(rights[row], xe)
            u = sax + dudx * (xs + 0.5 - ax) + dudy * (py - ay) - 0.5
            v = say + dvdx * (xs + 0.5 - ax) + dvdy * (py - ay) - 0.5
            ui, vi = np.int32(u * 65536.0 + 128.0), np.int32(v * 65536.0 + 128.0)
            texels, shares = texel[row, xs:xe], share[row, xs:xe]
            for x in range(xe - xs):
                uc, vc = min(max(ui, none), last_u), min(max(vi, none), last_v)
                texels[x] = (vc >> 16) * wide + (uc >> 16)
                shares[x] = ((uc >> 8) & 255) | (vc & 0xFF00)
                ui += du
                vi += dv


@njit(cache=True, nogil=True)
def _paint_texels(texture, texel, share, lefts, rights, out):  # type: ignore[no-untyped-def]
    """Draw the bilinear colours at `_find_texels`' places over ``out`` (H, W, 3)."""
    height, width = texel.shape
    flat = texture.reshape(texture.size)
    one, below = np.uint64(1), np.uint64(texture.shape[1])
    low, byte, full = np.uint32(0x00FF00FF), np.uint32(255), np.uint32(256)
    unit, half, eight = np.uint32(1), np.uint32(127), np.uint32(8)
    sixteen, twenty_four = np.uint32(16), np.uint32(24)
    corners = np.empty((4, width), np.uint32)
    first, second, third, fourth = corners[0], corners[1], corners[2], corners[3]
    for y in range(height):
        start, end = lefts[y], rights[y]
        if start >= end:
            continue
        texels, shares = texel[y, start:end], share[y, start:end]
        row = out[y].reshape(3 * width)[3 * start : 3 * end]
        for x in range(end - start):
            at = np.uint64(texels[x])
            first[x], second[x] = flat[at], flat[at + one]
            third[x], fourth[x] = flat[at + below], flat[at + below + one]
        for x in range(end - start):
            a, b, c, d = first[x], second[x], third[x], fourth[x]
            both = np.uint32(shares[x])
            fx, fy = both & byte, both >> eight
            gx, gy = full - fx, full - fy
            # Two channels at a time in one word: red and blue, then green and alpha.
            top = (((a & low) * gx + (b & low) * fx) >> eight) & low
            bottom = (((c & low) * gx + (d & low) * fx) >> eight) & low
            red_blue = ((top * gy + bottom * fy) >> eight) & low
            top = ((((a >> eight) & low) * gx + ((b >> eight) & low) * fx) >> eight) & low
            bottom = ((((c >> eight) & low) * gx + ((d >> eight) & low) * fx) >> eight) & low
            first[x] = red_blue | ((top * gy + bottom * fy) & ~low)
        for x in range(end - start):
            colour = first[x]
            through = byte - (colour >> twenty_four)
            r = np.uint32(row[3 * x]) * through + half
            g = np.uint32(row[3 * x + 1]) * through + half
            b = np.uint32(row[3 * x + 2]) * through + half
            # n // 255, clipped: bilinear weights lose a little of each.
            r = (colour & byte) + ((r + unit + (r >> eight)) >> eight)
            g = ((colour >> eight) & byte) + ((g + unit + (g >> eight)) >> eight)
            b = ((colour >> sixteen) & byte) + ((b + unit + (b >> eight)) >> eight)
            row[3 * x] = np.uint8(min(byte, r))
            row[3 * x + 1] = np.uint8(min(byte, g))
            row[3 * x + 2] = np.uint8(min(byte, b))


@njit(cache=True, nogil=True)
def _sides(ring):  # type: ignore[no-untyped-def]
    """(N, 6) of a closed polygon (N, 2): start, way to the next corner, and the two quotients that
    `_signed_distance` needs: 1 / length², and x over y of the way; 0 where there is none."""
    count = ring.shape[0]
    sides = np.zeros((count, 6))
    for i in range(count):
        j = i + 1 if i + 1 < count else 0
        ex, ey = ring[j, 0] - ring[i, 0], ring[j, 1] - ring[i, 1]
        length = ex * ex + ey * ey
        sides[i, 0], sides[i, 1], sides[i, 2], sides[i, 3] = ring[i, 0], ring[i, 1], ex, ey
        sides[i, 4] = 0.0 if length < 1e-12 else 1.0 / length
        sides[i, 5] = 0.0 if ey == 0.0 else ex / ey
    return sides


@njit(cache=True, nogil=True, inline="always")
def _signed_distance(sides, x, y):  # type: ignore[no-untyped-def]
    """Signed distance of a point to the polygon of ``sides``, positive inside, pixels."""
    nearest = 1e18
    inside = False
    for i in range(sides.shape[0]):
        ex, ey = sides[i, 2], sides[i, 3]
        px, py = x - sides[i, 0], y - sides[i, 1]
        t = min(1.0, max(0.0, (px * ex + py * ey) * sides[i, 4]))
        dx, dy = px - t * ex, py - t * ey
        nearest = min(nearest, dx * dx + dy * dy)
        if (py < 0.0) != (py < ey) and px < py * sides[i, 5]:
            inside = not inside
    distance = np.sqrt(nearest)
    return distance if inside else -distance


@njit(cache=True, nogil=True)
def signed_distances(ring, points):  # type: ignore[no-untyped-def]
    """(M,) signed distance of ``points`` (M, 2) to the polygon ``ring``, positive inside."""
    out = np.empty(points.shape[0], np.float64)
    sides = _sides(ring)
    for n in range(points.shape[0]):
        out[n] = _signed_distance(sides, points[n, 0], points[n, 1])
    return out


def distance_map(ring: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(H, W): signed distance of each pixel centre to the polygon ``ring``, positive inside."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    distances: NDArray[np.float64] = signed_distances(ring.astype(np.float64), centres)
    return distances.reshape(shape)


@njit(cache=True, nogil=True, inline="always")
def _smoothstep(t):  # type: ignore[no-untyped-def]
    # `face_model.smoothstep` for kernels: Numba's cache does not notice changes in other files.
    t = min(1.0, max(0.0, t))
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, nogil=True, inline="always")
def _over(out, y, x, r, g, b, alpha):  # type: ignore[no-untyped-def]
    out[y, x, 0] = np.uint8(out[y, x, 0] * (1.0 - alpha) + r * alpha + 0.5)
    out[y, x, 1] = np.uint8(out[y, x, 1] * (1.0 - alpha) + g * alpha + 0.5)
    out[y, x, 2] = np.uint8(out[y, x, 2] * (1.0 - alpha) + b * alpha + 0.5)


@njit(cache=True, nogil=True)
def draw_eye(ring, eyeball, to_eyeball, iris, gaze, out):  # type: ignore[no-untyped-def]
    """The eyeball, seen through the polygon ``ring`` (N, 2) of the lids.

    ``eyeball`` (packed) is the eye at rest, inpainted under the lids; ``to_eyeball`` (2, 3) maps
    ``out``'s pixels to its texels. ``iris`` is (x, y, radius) there; ``gaze`` (2,) texels moves it,
    the white stretching between iris and corners.
    """
    height, width = out.shape[0], out.shape[1]
    x0, x1 = max(0, int(ring[:, 0].min()) - 1), min(width, int(ring[:, 0].max()) + 2)
    y0, y1 = max(0, int(ring[:, 1].min()) - 1), min(height, int(ring[:, 1].max()) + 2)
    sides = _sides(ring)
    for y in range(y0, y1):
        for x in range(x0, x1):
            px, py = x + 0.5, y + 0.5
            alpha = min(1.0, _signed_distance(sides, px, py) + 0.5)
            if alpha <= 0.0:
                continue
            u = to_eyeball[0, 0] * px + to_eyeball[0, 1] * py + to_eyeball[0, 2] - 0.5
            v = to_eyeball[1, 0] * px + to_eyeball[1, 1] * py + to_eyeball[1, 2] - 0.5
            away = np.hypot(u - iris[0] - gaze[0], v - iris[1] - gaze[1]) / iris[2]
            share = 1.0 - _smoothstep((away - 1.1) / 1.4)
            u -= gaze[0] * share
            v -= gaze[1] * share
            texel = _bilinear(eyeball, np.int64(u * 256.0 + 0.5), np.int64(v * 256.0 + 0.5))
            _over(
                out,
                y,
                x,
                float(texel & np.uint32(255)),
                float((texel >> np.uint32(8)) & np.uint32(255)),
                float((texel >> np.uint32(16)) & np.uint32(255)),
                alpha,
            )


@njit(cache=True, nogil=True)
def untangle(target, triangles, least, first, neighbours, weights, pinned, rounds):  # type: ignore[no-untyped-def]
    """Relax the points of ``target`` (V, 2), in place, where triangles fold.

    Folded is a triangle whose doubled area is below ``least`` (N,). Its corners move half way to
    the weighted mean of their neighbours (``neighbours[first[v]:first[v + 1]]``, ``weights``
    likewise, each point's summing to 1), round by round; the ``pinned`` ones move only in the
    second half of the ``rounds``. Returns how many folds are left.
    """
    count = target.shape[0]
    folded = 0
    for turn in range(rounds + 1):
        moving = np.zeros(count, np.bool_)
        folded = 0
        for n in range(triangles.shape[0]):
            i, j, k = triangles[n, 0], triangles[n, 1], triangles[n, 2]
            ax, ay = target[i, 0], target[i, 1]
            area = (target[j, 0] - ax) * (target[k, 1] - ay)
            area -= (target[k, 0] - ax) * (target[j, 1] - ay)
            if area < least[n]:
                folded += 1
                moving[i] = moving[j] = moving[k] = True
        if folded == 0 or turn == rounds:
            break
        for v in range(count):
            if not moving[v] or first[v] == first[v + 1] or (pinned[v] and 2 * turn < rounds):
                continue
            x, y = 0.0, 0.0
            for m in range(first[v], first[v + 1]):
                x += weights[m] * target[neighbours[m], 0]
                y += weights[m] * target[neighbours[m], 1]
            target[v, 0] = 0.5 * target[v, 0] + 0.5 * x
            target[v, 1] = 0.5 * target[v, 1] + 0.5 * y
    return folded
