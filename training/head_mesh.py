"""The head of server/static/head.glb: ICT-FaceKit's, with 52 ARKit actions as morph targets.

    python -m training.head_mesh ict_facekit.npz server/static/head.glb

Needs the package fast-simplification, which nothing else does.
"""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTIONS
from model.types import Floats

Ints = NDArray[np.int64]

_UNIT_CM = 0.001  # of the file's integers
_LEAST_CM = 0.03  # smaller offsets are left out
# Vertices of the kit by part, and what share of each is kept.
_PARTS = {
    "skin": (((0, 14062),), 0.45),
    "gums": (((14062, 17039),), 0.30),
    "teeth": (((17039, 21451),), 0.40),
    "eyes": (((21451, 22221), (23021, 23791)), 1.0),
}
_SOCKET = slice(11248, 13294)
_EYE_TURN = np.radians(28.0)  # at a coefficient of 1
_BOTH_SIDES = ("browInnerUp", "cheekPuff")  # one action of ARKit's, two of the kit's


@dataclass(frozen=True)
class _Part:
    name: str
    points: Floats  # (V, 3) cm
    triangles: Ints  # (F, 3)
    offsets: Floats  # (52, V, 3) cm
    inside: Floats  # (V,) 1 in the mouth's socket


def _expressions(kit: dict[str, NDArray[np.generic]]) -> Floats:
    """(52, V, 3) in the order of `ACTIONS`."""
    offsets = kit["expressions"].astype(np.float32)
    by_name = dict(zip(map(str, kit["expression_names"]), offsets, strict=True))
    found = []
    for action in ACTIONS:
        side = {"Left": "_L", "Right": "_R"}
        stem = action.removesuffix("Left").removesuffix("Right")
        if action in _BOTH_SIDES:
            found.append(by_name[f"{action}_L"] + by_name[f"{action}_R"])
        elif action == "tongueOut":
            found.append(_tongue(kit["neutral"].astype(np.float32)))
        elif action in by_name:
            found.append(by_name[action])
        else:
            found.append(by_name[stem + side[action[len(stem) :]]])
    return np.stack(found)


def _tongue(points: Floats) -> Floats:
    """The kit has none: its tongue, by how far it lies in front and in the middle."""
    offsets = np.zeros_like(points)
    gums = np.zeros(len(points), bool)
    gums[14062:17039] = True
    inner = gums & (np.abs(points[:, 0]) < 1.7) & (points[:, 1] < -2.9) & (points[:, 1] > -4.3)
    weight = np.clip((points[:, 2] - 4.0) / 5.0, 0.0, 1.0) * inner
    offsets[:, 2] = 2.2 * weight
    return offsets


def _eye_turns(points: Floats) -> Floats:
    """(52, V, 3): eyeballs turn about their middle as `eyeLook` says."""
    offsets = np.zeros((len(ACTIONS), len(points), 3), np.float32)
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        own = points[:, 0] * sign > 0
        arm = points[own] - (points[own].min(0) + points[own].max(0)) / 2
        turns = {"Up": (-1.0, 0.0), "Down": (1.0, 0.0), "Out": (0.0, sign), "In": (0.0, -sign)}
        for way, (about_x, about_y) in turns.items():
            axis = np.array([about_x, about_y, 0.0], np.float32)
            moved = arm * np.cos(_EYE_TURN) + np.cross(axis, arm) * np.sin(_EYE_TURN)
            moved += np.outer(arm @ axis, axis) * (1 - np.cos(_EYE_TURN))
            offsets[ACTIONS.index(f"eyeLook{way}{side}"), own] = moved - arm
    return offsets


def _triangles(faces: Ints, keep: NDArray[np.bool_]) -> Ints:
    """Of the quads and triangles whose corners are all in ``keep``, by new numbers."""
    number = np.cumsum(keep) - 1
    inside = np.where(faces >= 0, keep[faces], True).all(axis=1)
    chosen = faces[inside]
    first = chosen[:, :3]
    second = chosen[chosen[:, 3] >= 0][:, [0, 2, 3]]
    return np.asarray(number[np.concatenate([first, second])])


def _simplified(part: _Part, share: float) -> _Part:
    """With about ``share`` of its vertices, each moved as the mean of those that it replaces."""
    if share >= 1.0:
        return part
    import fast_simplification

    points = part.points.astype(np.float64)
    triangles = part.triangles.astype(np.int64)
    _, _, collapses = fast_simplification.simplify(
        points, triangles, target_reduction=1.0 - share, agg=5, return_collapses=True
    )
    _, kept, mapping = fast_simplification.replay_simplification(points, triangles, collapses)
    count = int(mapping.max()) + 1
    number = np.bincount(mapping, minlength=count)[:, None]

    def mean(values: Floats) -> Floats:
        total = np.zeros((count, 3))
        np.add.at(total, mapping, values)
        return np.asarray(total / number, np.float32)

    offsets = np.stack([mean(one) for one in part.offsets])
    inside = np.bincount(mapping, part.inside, count) / number[:, 0]
    triangles = np.asarray(kept, np.int64)
    return _Part(part.name, mean(part.points), triangles, offsets, np.asarray(inside, np.float32))


def head_parts(kit: dict[str, NDArray[np.generic]]) -> list[_Part]:
    """Skin, gums, teeth and eyes."""
    points, faces = kit["neutral"].astype(np.float32), kit["faces"].astype(np.int64)
    expressions = _expressions(kit)
    parts = []
    for name, (ranges, share) in _PARTS.items():
        keep = np.zeros(len(points), bool)
        for first, stop in ranges:
            keep[first:stop] = True
        own = points[keep]
        offsets = _eye_turns(own) if name == "eyes" else expressions[:, keep]
        inside = np.zeros(len(points), np.float32)
        inside[_SOCKET] = 1.0
        part = _Part(name, own, _triangles(faces, keep), offsets, inside[keep])
        parts.append(_simplified(part, share))
    return parts


def write_glb(parts: list[_Part], path: Path) -> None:
    """glTF 2.0, quantised (KHR_mesh_quantization); targets are sparse and named."""
    blob = bytearray()
    views: list[dict[str, object]] = []
    accessors: list[dict[str, object]] = []

    def view(data: bytes) -> int:
        blob.extend(b"\0" * (-len(blob) % 4))
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)})
        blob.extend(data)
        return len(views) - 1

    def accessor(**fields: object) -> int:
        accessors.append(fields)
        return len(accessors) - 1

    meshes: list[dict[str, object]] = []
    nodes: list[dict[str, object]] = []
    for part in parts:
        points = np.round(part.points / _UNIT_CM).astype(np.int16)
        padded = np.pad(points, ((0, 0), (0, 1)))
        at = view(padded.astype("<i2").tobytes())
        views[at]["byteStride"] = 8
        bounds = {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
        kind = {"componentType": 5122, "type": "VEC3", "count": len(points)}
        place = accessor(bufferView=at, **kind, **bounds)
        inside = np.zeros((len(points), 4), np.uint8)
        inside[:, 0] = np.round(255 * part.inside)
        at = view(inside.tobytes())
        views[at]["byteStride"] = 4
        socket = accessor(
            bufferView=at, componentType=5121, normalized=True, type="SCALAR", count=len(points)
        )
        corners = part.triangles.astype("<u2")
        order = accessor(
            bufferView=view(corners.tobytes()),
            componentType=5123,
            type="SCALAR",
            count=corners.size,
        )
        targets = []
        for offset in part.offsets:
            moved = np.flatnonzero(np.linalg.norm(offset, axis=1) > _LEAST_CM)
            moved = moved if len(moved) else np.array([0])
            values = np.round(offset[moved] / _UNIT_CM).astype("<i2")
            sparse = {
                "count": len(moved),
                "indices": {
                    "bufferView": view(moved.astype("<u2").tobytes()),
                    "componentType": 5123,
                },
                "values": {"bufferView": view(values.tobytes())},
            }
            low, high = values.min(0), values.max(0)
            bounds = {"min": np.minimum(low, 0).tolist(), "max": np.maximum(high, 0).tolist()}
            targets.append({"POSITION": accessor(**kind, **bounds, sparse=sparse)})
        primitive = {
            "attributes": {"POSITION": place, "_INSIDE": socket},
            "indices": order,
            "targets": targets,
        }
        extras = {"targetNames": list(ACTIONS)}
        nodes.append({"name": part.name, "mesh": len(meshes), "scale": [_UNIT_CM / 100] * 3})
        meshes.append({"name": part.name, "primitives": [primitive], "extras": extras})
    blob.extend(b"\0" * (-len(blob) % 4))
    document = {
        "asset": {
            "version": "2.0",
            "generator": "fada training.head_mesh",
            "copyright": "(c) 2020 USC Institute for Creative Technologies (ICT-FaceKit), MIT",
        },
        "extensionsUsed": ["KHR_mesh_quantization"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(blob), b"BIN\0") + bytes(blob)
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kit", type=Path, help="ict_facekit.npz")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with np.load(args.kit) as kit:
        parts = head_parts(dict(kit))
    write_glb(parts, args.out)
    for part in parts:
        print(f"{part.name}: {len(part.points)} vertices, {len(part.triangles)} triangles")
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
