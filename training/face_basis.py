"""Derive `model/weights/face_basis.safetensors`: how the 478-point mesh moves with each action.

ICT-FaceKit's expression meshes (MIT) are transferred to MediaPipe's canonical face by a thin-plate
warp on 68 shared landmarks; they give the prior for all actions. Tracked frames of a real speaker
(GRID s1, CC BY 4.0) correct it by a ridge regression towards the prior:
B = argmin |Y - X B|² + λ |B - B_ict|².

    python -m training.face_basis --canonical geometry_pipeline_metadata_landmarks.binarypb \
        --ict ict_facekit.npz --frames landmarks478_sample.npz

The first file is inside MediaPipe's `face_landmarker.task`, a zip.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from model.models import WEIGHTS
from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, FACE_LANDMARKS
from model.rendering.face_model import (
    EYES,
    LOWER_LIP,
    MOUTH_CORNERS,
    STABLE,
    UPPER_LIP,
    fit_similarity,
)
from training.linear import ridge

Array = NDArray[np.float64]

OUT = WEIGHTS / "face_basis.safetensors"
RIDGE = 5.0
LOWER_FACE_TOP_CM = 1.5  # the eyes are at 2.7, the tip of the nose at -1.1

# The same 68 points (Multi-PIE) as vertices of ICT-FaceKit and of MediaPipe's mesh.
# fmt: off
ICT_68 = [
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088,
    3443, 268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140,
    2075, 1147, 4269, 3360, 1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725,
    3732, 5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841, 5702, 5711, 5533,
    6216, 6207, 6470, 5517, 5966]
MESH_68 = [
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63,
    105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133,
    153, 144, 362, 385, 387, 263, 373, 380, 61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87]
# fmt: on
# Without the ends of the jaw line, which are silhouettes, not anatomy, and would bend the warp.
WARP_ON = [*range(5, 12), *range(17, 68)]
ICT_SKIN = 11248  # vertices of face, head and neck, which come first
LIP_SPLIT_CM = (-1.45, -1.6)  # jawOpen moves upper lips less, lower lips more than this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canonical", type=Path, required=True)
    parser.add_argument("--ict", type=Path, required=True)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    canonical, triangles = read_canonical(args.canonical)
    ict = dict(np.load(args.ict).items())
    names = [str(name) for name in ict["expression_names"]]
    moves = ict["expressions"].astype(np.float64)
    jaw = moves[names.index("jawOpen"), :ICT_SKIN, 1]
    placed = warp(ict["neutral"].astype(np.float64), canonical)

    carried = carry(moves[:, :ICT_SKIN], placed[:ICT_SKIN], jaw, canonical=canonical)
    carried = smooth(carried, triangles)
    prior = np.stack([_of_action(action, names, carried) for action in ACTIONS])
    frames = np.load(args.frames)
    coefficients, landmarks = _tracked(frames, canonical)
    basis = correct(prior, coefficients, landmarks, canonical=canonical)
    unit = float(np.linalg.norm(canonical[33] - canonical[263]))
    down = np.array([1.0, -1.0, -1.0])  # picture axes: x right, y down, z away
    save_file(
        {
            "canonical": (canonical * down / unit).astype(np.float32),
            "triangles": triangles.astype(np.int32),
            "basis": (basis * down / unit).astype(np.float16),
        },
        args.out,
        metadata={
            "actions": ",".join(ACTIONS),
            "unit": "distance of the outer eye corners",
            "origin": "ICT-FaceKit (MIT), MediaPipe (Apache-2.0), GRID s1 (CC BY 4.0)",
        },
    )
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


def read_canonical(path: Path) -> tuple[Array, NDArray[np.int64]]:
    """Vertices (468, 3) in cm, x right, y up, z to the viewer, and triangles (898, 3)."""
    mesh = next(value for _, value in _fields(path.read_bytes()) if isinstance(value, bytes))
    floats, corners = [], []
    for number, value in _fields(mesh):
        if number == 3 and isinstance(value, bytes):
            floats.append(struct.unpack("<f", value)[0])
        elif number == 4:
            corners.append(value)
    vertices = np.array(floats).reshape(-1, 5)[:, :3]  # the last two are texture coordinates
    return vertices, np.array(corners, dtype=np.int64).reshape(-1, 3)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of each field of a Protocol Buffers message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        length = {5: 4, 1: 8}.get(kind) or varint()
        yield number, message[at : at + length]
        at += length


def warp(neutral: Array, canonical: Array) -> Array:
    """ICT-FaceKit's neutral face (N, 3) fitted to the canonical one, in cm."""
    ours = np.array(MESH_68)[17:]
    scale, turn, shift = fit_similarity(neutral[ICT_68][17:], canonical[ours])
    laid = scale * neutral @ turn.T + shift
    at = laid[np.array(ICT_68)[WARP_ON]]
    residual = canonical[np.array(MESH_68)[WARP_ON]] - at
    bend = RBFInterpolator(at, residual, kernel="thin_plate_spline", smoothing=0.01, degree=1)
    return laid + bend(laid)


def carry(moves: Array, placed: Array, jaw: Array, *, canonical: Array) -> Array:
    """Expression offsets (E, 468, 3) at the mesh points, from the nearest ICT vertices.

    The lips touch in the neutral face, so each lip only takes vertices of its own side, which
    ``jaw``, the vertical offsets of jawOpen, separates.
    """
    allowed = {
        "upper": np.flatnonzero(jaw > LIP_SPLIT_CM[0]),
        "lower": np.flatnonzero(jaw < LIP_SPLIT_CM[1]),
        "any": np.arange(len(jaw)),
    }
    trees = {side: cKDTree(placed[index]) for side, index in allowed.items()}
    carried = np.zeros((len(moves), len(canonical), 3))
    for vertex, point in enumerate(canonical):
        side = "upper" if vertex in UPPER_LIP else "lower" if vertex in LOWER_LIP else "any"
        distance, nearest = trees[side].query(point, k=4)
        weight = 1.0 / (distance + 0.02) ** 2
        weight /= weight.sum()
        carried[:, vertex] = np.einsum("k,ekc->ec", weight, moves[:, allowed[side][nearest]])
    return carried


def smooth(carried: Array, triangles: NDArray[np.int64], rounds: int = 2) -> Array:
    """Smooth the offsets over neighbouring points, except those of lips and lids."""
    contours = {v for eye in EYES for v in eye.ring.tolist()} | set(MOUTH_CORNERS)
    fixed = np.array(sorted(UPPER_LIP | LOWER_LIP | contours))
    mean = np.zeros((carried.shape[1], carried.shape[1]))
    for a, b, c in triangles:
        mean[a, [b, c]] = mean[b, [a, c]] = mean[c, [a, b]] = 1.0
    mean /= mean.sum(axis=1, keepdims=True)
    mean = 0.5 * mean + 0.5 * np.eye(len(mean))
    mean[fixed] = np.eye(len(mean))[fixed]
    for _ in range(rounds):
        carried = np.einsum("vw,ewc->evc", mean, carried)
    return carried


def _of_action(action: str, names: list[str], carried: Array) -> Array:
    """Offsets of an ARKit action: the sum of ICT's sides; zero for tongueOut, which ICT lacks."""
    stem = action.removesuffix("Left").removesuffix("Right")
    side = {"Left": ["_L"], "Right": ["_R"]}.get(action[len(stem) :], ["", "_L", "_R"])
    found = [carried[names.index(stem + s)] for s in side if stem + s in names]
    if not found and action in names:  # jawLeft, mouthRight, … are not sides
        found = [carried[names.index(action)]]
    return np.sum(found, axis=0) if found else np.zeros(carried.shape[1:])


def _tracked(frames: np.lib.npyio.NpzFile, canonical: Array) -> tuple[Array, Array]:
    """Coefficients (T, 52) and pose-free landmarks (T, 468, 3), each minus its mean."""
    aspect = np.array(
        [360.0, -288.0, -360.0]
    )  # fractions of 360 × 288 → x right, y up, z to the viewer
    landmarks = frames["landmarks"].astype(np.float64)[:, :FACE_LANDMARKS] * aspect
    free = []
    for points in landmarks:
        scale, turn, shift = fit_similarity(canonical[STABLE], points[STABLE])
        free.append((points - shift) @ turn / scale)
    coefficients = np.zeros((len(landmarks), ACTION_COUNT))
    coefficients[:, :51] = frames["blendshapes"][:, 1:]
    return coefficients - coefficients.mean(axis=0), np.array(free) - np.mean(free, axis=0)


def correct(prior: Array, coefficients: Array, landmarks: Array, *, canonical: Array) -> Array:
    """The ridge regression of the module's docstring; unused actions keep the prior.

    Only jaw, mouth and cheek actions are corrected, and only below the eyes: a speaker looks down
    when the jaw opens, and a regression would learn to open the jaw by looking down.
    """
    speech_actions = [
        i for i, name in enumerate(ACTIONS) if name.startswith(("jaw", "mouth", "cheek"))
    ]
    flat = prior.reshape(ACTION_COUNT, -1)
    left_over = landmarks.reshape(len(landmarks), -1) - coefficients @ flat
    change = ridge(coefficients[:, speech_actions], left_over, RIDGE)
    change = change.reshape(len(speech_actions), *prior.shape[1:])
    lower_face = np.clip((LOWER_FACE_TOP_CM - canonical[:, 1]) / 1.5, 0.0, 1.0)
    corrected = prior.copy()
    corrected[speech_actions] += change * lower_face[:, None]
    return corrected


if __name__ == "__main__":
    main()
