"""The compiled kernel that draws the mouth's interior (`model.rendering.mouth`)."""

from __future__ import annotations

import numpy as np
from numba import njit

from model.rendering.raster import _bilinear, _over, _smoothstep

SMOOTHING = 0.09  # of the opening's height: what is narrower is no shape of lips
# What `_lips` has of a column across the mouth: the opening's ends (rows that cover the polygon),
# those of its smooth outline, the cosines of its slopes, and the colours of both lips.
TOP, BOTTOM, UPPER, LOWER, UPPER_COSINE, LOWER_COSINE, UPPER_LIP, LOWER_LIP = 0, 1, 2, 3, 4, 5, 6, 9


@njit(cache=True, nogil=True)
def _colours_outside(ring, out):  # type: ignore[no-untyped-def]
    """(N, 3): the colours that ``out`` has just outside each corner of a polygon (N, 2)."""
    height, width = out.shape[0], out.shape[1]
    count = ring.shape[0]
    colours = np.zeros((count, 3))
    for k in range(count):
        before, after = (k - 1) % count, (k + 1) % count
        dx, dy = ring[after, 0] - ring[before, 0], ring[after, 1] - ring[before, 1]
        length = max(1e-6, np.sqrt(dx * dx + dy * dy))
        for away in (1.5, 3.0):
            x, y = int(ring[k, 0] + away * dy / length), int(ring[k, 1] - away * dx / length)
            for i in range(-1, 2):
                for j in range(-1, 2):
                    row, column = min(height - 1, max(0, y + i)), min(width - 1, max(0, x + j))
                    for c in range(3):
                        colours[k, c] += out[row, column, c] / 18.0
    return colours


@njit(cache=True, nogil=True)
def _smooth_columns(lips, first, last, radius):  # type: ignore[no-untyped-def]
    """Average fields ``first`` to ``last`` of (columns, fields) over 2 radius + 1, three times."""
    columns = lips.shape[0]
    line = np.empty(columns)
    for field in range(first, last):
        for _ in range(3):
            line[:] = lips[:, field]
            total = 0.0
            for i in range(-radius, radius + 1):
                total += line[min(columns - 1, max(0, i))]
            for i in range(columns):
                lips[i, field] = total / (2 * radius + 1)
                total += line[min(columns - 1, i + radius + 1)] - line[max(0, i - radius)]


@njit(cache=True, nogil=True)
def _lips(ring, frame, out):  # type: ignore[no-untyped-def]
    """(columns, 12): the inner lips as `TOP` and the other names have them, a pixel a column.

    ``frame`` (2, 3), filled in, takes a pixel to its column and its row in the mouth's own frame:
    the first runs from corner to corner of the mouth, whichever way the head is tilted.
    """
    count = ring.shape[0]
    half = count // 2
    dx, dy = ring[half, 0] - ring[0, 0], ring[half, 1] - ring[0, 1]
    length = np.sqrt(dx * dx + dy * dy)
    if length < 1e-3:
        dx, dy, length = 1.0, 0.0, 1.0
    dx, dy = dx / length, dy / length
    s, t = ring[:, 0] * dx + ring[:, 1] * dy, ring[:, 1] * dx - ring[:, 0] * dy
    radius = max(1, int(SMOOTHING * (t.max() - t.min()) + 0.5))
    border = 3 * radius + 2
    start = np.floor(s.min()) - border
    s -= start
    frame[0, 0], frame[0, 1], frame[0, 2] = dx, dy, -start
    frame[1, 0], frame[1, 1], frame[1, 2] = -dy, dx, 0.0
    columns = int(s.max()) + border + 2
    lips = np.zeros((columns, 12))
    lips[:, TOP], lips[:, BOTTOM] = 1e9, -1e9
    colours = _colours_outside(ring, out)
    for k in range(count):
        after = (k + 1) % count
        a, b = (k, after) if s[k] <= s[after] else (after, k)
        for i in range(int(s[a]), int(s[b]) + 2):
            share = (i - s[a]) / max(1e-6, s[b] - s[a])
            share = min(1.0, max(0.0, share))
            row = t[a] + share * (t[b] - t[a])
            if row < lips[i, TOP]:
                lips[i, TOP] = row
                for c in range(3):
                    lips[i, UPPER_LIP + c] = colours[a, c] + share * (colours[b, c] - colours[a, c])
            if row > lips[i, BOTTOM]:
                lips[i, BOTTOM] = row
                for c in range(3):
                    lips[i, LOWER_LIP + c] = colours[a, c] + share * (colours[b, c] - colours[a, c])
    # Beyond its corners the mouth is closed, so that smoothing tapers it.
    first, last = int(s.min()), int(s.max()) + 1
    for i in range(columns):
        if i <= first or i >= last:
            lips[i] = lips[min(last, max(first, i))]
            middle = 0.5 * (lips[i, TOP] + lips[i, BOTTOM])
            lips[i, TOP], lips[i, BOTTOM] = middle, middle
    lips[:, UPPER], lips[:, LOWER] = lips[:, TOP], lips[:, BOTTOM]
    _smooth_columns(lips, UPPER, LOWER + 1, radius)
    _smooth_columns(lips, UPPER_LIP, lips.shape[1], radius)
    for i in range(columns):
        before, after = max(0, i - 1), min(columns - 1, i + 1)
        for edge, cosine in ((UPPER, UPPER_COSINE), (LOWER, LOWER_COSINE)):
            slope = (lips[after, edge] - lips[before, edge]) / (after - before)
            lips[i, cosine] = 1.0 / np.sqrt(1.0 + slope * slope)
    return lips


@njit(cache=True, nogil=True, inline="always")
def _on_arch(place, lean, depth, x, y):  # type: ignore[no-untyped-def]
    """Texel (u, v) of a curved row that is seen at pixel (x, y)."""
    u0 = place[0, 0] * x + place[0, 1] * y + place[0, 2]
    v0 = place[1, 0] * x + place[1, 1] * y + place[1, 2]
    u, z = u0, 0.0
    for _ in range(4):
        at = min(max(u, 0.0), depth.shape[0] - 1.001)
        left = int(at)
        z = depth[left] + (at - left) * (depth[left + 1] - depth[left])
        u = u0 + lean[0] * z
    return u - 0.5, v0 + lean[1] * z - 0.5


@njit(cache=True, nogil=True, inline="always")
def _texel(texture, u, v):  # type: ignore[no-untyped-def]
    """Premultiplied (r, g, b, alpha / 255) at texel (u, v); clear outside."""
    if u <= 0 or v <= 0 or u >= texture.shape[1] - 1 or v >= texture.shape[0] - 1:
        return 0.0, 0.0, 0.0, 0.0
    word = _bilinear(texture, np.int64(u * 256.0 + 0.5), np.int64(v * 256.0 + 0.5))
    return (
        float(word & np.uint32(255)),
        float((word >> np.uint32(8)) & np.uint32(255)),
        float((word >> np.uint32(16)) & np.uint32(255)),
        float((word >> np.uint32(24)) & np.uint32(255)) / 255.0,
    )


@njit(cache=True, nogil=True, fastmath=True)
def draw_mouth(  # type: ignore[no-untyped-def]
    ring, upper, lower, tongue, own, places, leans, depths, colours, numbers, out
):
    """The mouth's interior, seen through the polygon ``ring`` (N, 2) of the inner lips.

    ``upper``, ``lower`` and ``tongue`` (packed, premultiplied) lie one behind the other. ``places``
    (4, 2, 3) maps ``out``'s pixels to their texels (upper, lower, tongue, own) in the plane of the
    incisors; ``leans`` (2, 2) are texels a unit of depth, ``depths`` (2, W) the depth of each
    column. ``colours`` (2, 3): cavity near the lips, its depth. ``own`` is the portrait's own
    mouth; its alpha is 128 + 16 x the distance to the lips at rest, in pixels. ``numbers`` (11,):
    softness of the lips' edge, depth of the cavity, reach of the upper lip's shadow, how far lips
    roll in, all in pixels; light that the opening lets in (0..1), share of ``own`` (0..1), gloss of
    the wet lip (0..255) and where it lies across (0..1), light on a tongue under the lip, share of
    all that is drawn (0..1), and how dark the upper lip's shadow is (0..1).
    """
    soft, deep, shadow, rim, dim = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    own_share, gloss, light, raised = numbers[5], numbers[6], numbers[7], numbers[8]
    share, dark_lip = numbers[9], numbers[10]
    height, width = out.shape[0], out.shape[1]
    edge = 2 + int(0.5 * soft)
    x0, x1 = max(0, int(ring[:, 0].min()) - edge), min(width, int(ring[:, 0].max()) + edge + 1)
    y0, y1 = max(0, int(ring[:, 1].min()) - edge), min(height, int(ring[:, 1].max()) + edge + 1)
    if x0 >= x1 or y0 >= y1:
        return
    frame = np.empty((2, 3))
    lips = _lips(ring, frame, out)
    half = ring.shape[0] // 2
    left = frame[0, 0] * ring[0, 0] + frame[0, 1] * ring[0, 1] + frame[0, 2]
    long = frame[0, 0] * ring[half, 0] + frame[0, 1] * ring[half, 1] + frame[0, 2] - left + 1e-6
    for y in range(y0, y1):
        for x in range(x0, x1):
            px, py = x + 0.5, y + 0.5
            column = frame[0, 0] * px + frame[0, 1] * py + frame[0, 2]
            row = frame[1, 0] * px + frame[1, 1] * py
            i = min(lips.shape[0] - 2, max(0, int(column)))
            f = column - i
            a, b = lips[i], lips[i + 1]
            over, under = a[UPPER_COSINE], a[LOWER_COSINE]
            inside = min(
                (row - a[TOP] - f * (b[TOP] - a[TOP])) * over,
                (a[BOTTOM] + f * (b[BOTTOM] - a[BOTTOM]) - row) * under,
            )
            alpha = share * min(1.0, inside / soft + 0.5)
            if alpha <= 0.0:
                continue
            below = max(0.0, (row - a[UPPER] - f * (b[UPPER] - a[UPPER])) * over)
            above = max(0.0, (a[LOWER] + f * (b[LOWER] - a[LOWER]) - row) * under)
            across = (column - left) / long
            corner = max(0.0, min(across, 1.0 - across))
            # Front to back, until nothing behind is seen. Lips turn away from the light as they
            # roll in, further towards the corners; the lower one is wet.
            red, green, blue, through = 0.0, 0.0, 0.0, 1.0
            side = 1.0 - 2.0 * corner
            side *= side
            side *= side
            reach = rim * (1.0 + 1.5 * side)
            if above < reach:
                cover = 1.0 - _smoothstep(above / reach)
                tone = cover * (0.22 + 0.78 * cover)
                spot = np.exp(-(((cover - 0.5) / 0.25) ** 2) - ((across - light) / 0.17) ** 2)
                spot *= gloss * (1.0 - side)
                red, green, blue = (
                    a[LOWER_LIP] * tone + spot,
                    a[LOWER_LIP + 1] * tone + spot,
                    a[LOWER_LIP + 2] * tone + spot,
                )
                through = 1.0 - cover
            reach = rim * (0.5 + 1.5 * side)
            if below < reach and through > 0.0:
                cover = 1.0 - _smoothstep(below / reach)
                tone = through * cover * (0.15 + 0.75 * cover)
                red += a[UPPER_LIP] * tone
                green += a[UPPER_LIP + 1] * tone
                blue += a[UPPER_LIP + 2] * tone
                through *= 1.0 - cover
            # The upper lip throws its shadow on all that follows, most on what lies deepest; the
            # corners lie in the cheeks' shade.
            lit = (0.35 + 0.65 * _smoothstep(corner / 0.22)) * through
            dark = _smoothstep(min(above, below) / deep) * lit
            back_r = colours[0, 0] * lit + dark * (colours[1, 0] - colours[0, 0])
            back_g = colours[0, 1] * lit + dark * (colours[1, 1] - colours[0, 1])
            back_b = colours[0, 2] * lit + dark * (colours[1, 2] - colours[0, 2])
            lit *= dim * (1.0 - dark_lip * (1.0 - _smoothstep(below / shadow)))
            through = 1.0
            if lit > 0.004:
                u, v = _on_arch(places[0], leans[0], depths[0], px, py)
                tr, tg, tb, cover = _texel(upper, u, v)
                red, green, blue, through = (
                    red + tr * lit,
                    green + tg * lit,
                    blue + tb * lit,
                    1.0 - cover,
                )
                if through > 0.01:
                    u, v = _on_arch(places[1], leans[1], depths[1], px, py)
                    tr, tg, tb, cover = _texel(lower, u, v)
                    shade = through * lit * (0.55 + 0.37 * _smoothstep(below / (1.8 * shadow)))
                    red, green, blue = red + tr * shade, green + tg * shade, blue + tb * shade
                    through *= 1.0 - cover
                if through > 0.01:
                    u = places[2, 0, 0] * px + places[2, 0, 1] * py + places[2, 0, 2] - 0.5
                    v = places[2, 1, 0] * px + places[2, 1, 1] * py + places[2, 1, 2] - 0.5
                    tr, tg, tb, cover = _texel(tongue, u, v)
                    shade = raised + (1.0 - raised) * _smoothstep(below / (3.0 * shadow))
                    shade *= through * lit
                    red, green, blue = red + tr * shade, green + tg * shade, blue + tb * shade
                    through *= 1.0 - cover
            red, green, blue = (
                red + through * back_r,
                green + through * back_g,
                blue + through * back_b,
            )
            if own_share > 0.0:
                u = places[3, 0, 0] * px + places[3, 0, 1] * py + places[3, 0, 2] - 0.5
                v = places[3, 1, 0] * px + places[3, 1, 1] * py + places[3, 1, 2] - 0.5
                if 0 <= u < own.shape[1] - 1 and 0 <= v < own.shape[0] - 1:
                    word = _bilinear(own, np.int64(u * 256.0 + 0.5), np.int64(v * 256.0 + 0.5))
                    far = (float((word >> np.uint32(24)) & np.uint32(255)) - 128.0) / 16.0
                    cover = own_share * _smoothstep((far + 1.5) / 1.5 + 0.5)
                    red += cover * (float(word & np.uint32(255)) - red)
                    green += cover * (float((word >> np.uint32(8)) & np.uint32(255)) - green)
                    blue += cover * (float((word >> np.uint32(16)) & np.uint32(255)) - blue)
            _over(out, y, x, min(255.0, red), min(255.0, green), min(255.0, blue), alpha)
