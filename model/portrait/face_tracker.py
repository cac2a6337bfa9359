"""Face tracking: detector, 478-point mesh, ARKit-style coefficients, person mask.

Runs Google's MediaPipe networks (Apache-2.0 tflite files in `model/weights/`, see NOTICE) with
LiteRT.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from model.manifest import WEIGHTS, verified
from model.portrait.blendshapes import ACTION_COUNT, LANDMARKS
from model.portrait.framing import frame
from model.portrait.person_mask import PersonMask
from model.types import Floats, Picture

DETECTOR_SIDE = 256
MESH_SIDE = 256
MASK_SIDE = 256
MIN_DETECTION = 0.5
# A dog reaches 0.58 in the first pass, the least clear human portrait tried 0.99.
MIN_PRESENCE = 0.75
# A face box narrower than this has too few pixels to track or to animate.
MIN_FACE_PIXELS = 24
# A face is upright if its score, times the cosine of its roll, is this: 89 of 102 portraits are.
# Below, the picture is also turned. All but one of the rest reach 0.79 upright; upside down a face
# has less. In a turned picture it counts from `TURNED` on: dogs reach 0.5.
UPRIGHT, TURNED = 0.85, 0.6
# Where the detector sees no face in the whole picture, it looks at squares of this share of the
# long side, each overlapping the next by a third, for faces too small to be seen there.
TILE_SHARE, MAX_TILE_FACE = 1 / 3, 0.06
# The box is grown so that the mesh network sees forehead and chin (MediaPipe's own factor).
BOX_GROWTH = 1.5

# The blendshape network reads this subset of the mesh (x and y), in this order.
# fmt: off
BLENDSHAPE_POINTS = np.array([
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65,
    66, 67, 70, 78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136,
    144, 145, 146, 148, 149, 150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172,
    173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283,
    284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324,
    332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385,
    386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472,
    473, 474, 475, 476, 477,
])
# fmt: on


# Eye centres (2, 2), box (x0, y0, x1, y1) and score
_Detection = tuple[Floats, tuple[float, float, float, float], float]


class NoFaceError(ValueError):
    """The picture shows no face that is large and clear enough to animate."""


@dataclass(frozen=True)
class Face:
    """A tracked face, in pixels of the picture it was found in.

    ``landmarks`` (478, 3): x right, y down, z away from the viewer, all in pixels.
    ``coefficients`` (52,): the 51 ARKit actions that MediaPipe gives, then ``tongueOut`` (0).
    ``box``: x0, y0, x1, y1 of the detector; ``confidence``: its score, 0..1.
    """

    landmarks: Floats
    coefficients: Floats
    box: tuple[float, float, float, float]
    confidence: float


class FaceTracker:
    """The three face networks and the person mask, loaded once; safe to share among threads."""

    def __init__(self, threads: int = 1) -> None:
        self._lock = threading.Lock()
        self._detector = _Net("face_detection_back", threads)
        self._mesh = _Net("face_landmarks_detector", threads)
        self._blendshapes = _Net("face_blendshapes", threads)
        self._segmenter = _Net("selfie_segmentation", threads)
        self._anchors = _anchors()

    def find(self, picture: NDArray[np.uint8]) -> Face:
        """The largest face of ``picture`` (H, W, 3) RGB. Raises `NoFaceError`."""
        with self._lock:
            face = self._largest(picture, self._detect(picture))
            if face is None:
                face = self._largest(picture, self._detect_in_tiles(picture))
        if face is None:
            raise NoFaceError("no human face was found in the picture")
        return face

    def find_upright(self, picture: Picture) -> tuple[Picture, Face]:
        """``picture`` turned by quarters until its largest face is upright, and that face.

        Raises `NoFaceError`.
        """
        best, found = 0.0, None
        for quarters in range(4):
            turned = np.ascontiguousarray(np.rot90(picture, quarters))
            with self._lock:
                face = self._largest(turned, self._detect(turned))
            if face is None:
                continue
            upright = face.confidence * np.cos(_roll(face.landmarks))
            if upright > max(best, TURNED if quarters else 0.0):
                best, found = upright, (turned, face)
            if upright >= UPRIGHT:
                break
        return found or (picture, self.find(picture))

    def follow(self, picture: NDArray[np.uint8], previous: Face) -> Face:
        """The face that was ``previous`` a moment earlier in a video, (H, W, 3) RGB.

        Its mesh frames the next pass, so the detector runs only when the face is lost, and then
        finds the largest face. ``confidence`` is the mesh's. Raises `NoFaceError`.
        """
        with self._lock:
            landmarks, presence = self._refit_mesh(picture, previous.landmarks)
            if presence >= MIN_PRESENCE:
                (x0, y0), (x1, y1) = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
                box = (float(x0), float(y0), float(x1), float(y1))
                return Face(landmarks, self._read(landmarks), box, presence)
        return self.find(picture)

    def _largest(self, picture: Picture, boxes: list[_Detection]) -> Face | None:
        """Skips a box whose mesh is not a face (a hand, a pattern).

        Raises `NoFaceError` for a face that is too small.
        """
        for eyes, box, score in sorted(boxes, key=lambda found: -_area(found[1])):
            landmarks, presence = self._fit_mesh(picture, eyes, box)
            if presence < MIN_PRESENCE:
                continue
            if box[2] - box[0] < MIN_FACE_PIXELS:
                raise NoFaceError(
                    f"the largest face is {box[2] - box[0]:.0f} pixels wide; "
                    f"at least {MIN_FACE_PIXELS} are needed"
                )
            landmarks, _ = self._refit_mesh(picture, landmarks)
            return Face(landmarks, self._read(landmarks), box, score)
        return None

    def person(self, picture: NDArray[np.uint8], face: Face) -> PersonMask:
        """The mask of the whole picture, and a finer one around head and shoulders."""
        height, width = picture.shape[:2]
        whole = self._segment(picture)
        view = frame(
            "portrait",
            MASK_SIDE,
            width=width,
            height=height,
            landmarks=face.landmarks,
            person=whole,
        )
        close = self._segment(np.asarray(view.cut(picture, 0), np.uint8))
        square = (*view.corner, MASK_SIDE / view.scale)
        return PersonMask(whole, close, square, width, height)

    def _segment(self, picture: NDArray[np.uint8]) -> Floats:
        """(256, 256) 0..1 over the whole of ``picture``, squeezed to a square."""
        small = cv2.resize(picture, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_AREA)
        with self._lock:
            (mask,) = self._segmenter(small[None].astype(np.float32) / 255.0)
        return mask[0, ..., 0].copy()

    def _detect_in_tiles(self, picture: Picture) -> list[_Detection]:
        """Faces that are too small to be seen in the whole picture."""
        height, width = picture.shape[:2]
        side = max(DETECTOR_SIDE, round(TILE_SHARE * max(height, width)))
        widest = MAX_TILE_FACE * max(height, width)
        found = []
        for top in _starts(height, side):
            for left in _starts(width, side):
                tile = picture[top : top + side, left : left + side]
                for eyes, (x0, y0, x1, y1), score in self._detect(np.ascontiguousarray(tile)):
                    if x1 - x0 <= widest:
                        box = (x0 + left, y0 + top, x1 + left, y1 + top)
                        found.append((eyes + np.array((left, top), np.float32), box, score))
        return found

    def _detect(self, picture: NDArray[np.uint8]) -> list[_Detection]:
        """Eye centres (2, 2), box and score of each face, after weighted suppression."""
        height, width = picture.shape[:2]
        scale = DETECTOR_SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        board = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), np.uint8)
        left, top = (DETECTOR_SIDE - size[0]) // 2, (DETECTOR_SIDE - size[1]) // 2
        board[top : top + size[1], left : left + size[0]] = cv2.resize(
            picture, size, interpolation=cv2.INTER_AREA
        )
        raw, logits = self._detector(board[None].astype(np.float32) / 127.5 - 1.0)
        scores = 1.0 / (1.0 + np.exp(-np.clip(logits[0, :, 0], -50, 50)))
        keep = scores > MIN_DETECTION
        points = raw[0, keep].reshape(-1, 8, 2).astype(np.float64)
        points[:, [0, 2, 3, 4, 5, 6, 7]] += self._anchors[keep, None] * DETECTOR_SIDE
        points[:, 1] /= 2.0  # centre, half extent, then six keypoints (both eyes first)
        found = []
        rest, weights = points, scores[keep]
        while len(weights):
            best = int(np.argmax(weights))
            same = _overlap(rest, rest[best]) > 0.3
            mean = np.average(rest[same], axis=0, weights=weights[same])
            mean[[0, 2, 3, 4, 5, 6, 7]] -= (left, top)
            mean /= scale
            (cx, cy), (rx, ry) = mean[0], mean[1]
            box = (float(cx - rx), float(cy - ry), float(cx + rx), float(cy + ry))
            found.append((mean[2:4].astype(np.float32), box, float(weights[best])))
            rest, weights = rest[~same], weights[~same]
        return found

    def _fit_mesh(
        self, picture: NDArray[np.uint8], eyes: Floats, box: tuple[float, float, float, float]
    ) -> tuple[Floats, float]:
        right, left = eyes
        angle = float(np.arctan2(left[1] - right[1], left[0] - right[0]))
        side = BOX_GROWTH * max(box[2] - box[0], box[3] - box[1])
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        return self._mesh_in(picture, centre=centre, side=side, angle=angle)

    def _refit_mesh(self, picture: NDArray[np.uint8], landmarks: Floats) -> tuple[Floats, float]:
        """A second pass, framed by the mesh: steadier than one framed by the detector's box."""
        angle = float(np.arctan2(*(landmarks[263, :2] - landmarks[33, :2])[::-1]))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        upright = landmarks[:, :2] @ turn.T
        low, high = upright.min(axis=0), upright.max(axis=0)
        centre = ((low + high) / 2) @ turn
        side = BOX_GROWTH * float(max(high - low))
        return self._mesh_in(
            picture, centre=(float(centre[0]), float(centre[1])), side=side, angle=angle
        )

    def _mesh_in(
        self,
        picture: NDArray[np.uint8],
        *,
        centre: tuple[float, float],
        side: float,
        angle: float,
    ) -> tuple[Floats, float]:
        scale = MESH_SIDE / side
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        half = MESH_SIDE / 2
        forward = np.array(
            [
                [cos, sin, half - cos * centre[0] - sin * centre[1]],
                [-sin, cos, half + sin * centre[0] - cos * centre[1]],
            ]
        )
        # Strong minification aliases under bilinear sampling: shrink by area first.
        shrink = min(1.0, 2.0 * scale)
        small = picture
        if shrink < 0.9:
            small = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
            fx, fy = small.shape[1] / picture.shape[1], small.shape[0] / picture.shape[0]
            forward_small = forward.copy()
            forward_small[:, 0] /= fx
            forward_small[:, 1] /= fy
        else:
            forward_small = forward
        crop = cv2.warpAffine(
            small, forward_small, (MESH_SIDE, MESH_SIDE), borderMode=cv2.BORDER_REPLICATE
        )
        points, presence, _ = self._mesh(crop[None].astype(np.float32) / 255.0)
        mesh = points.reshape(LANDMARKS, 3).astype(np.float64)
        back = cv2.invertAffineTransform(forward)
        xy = mesh[:, :2] @ back[:, :2].T + back[:, 2]
        landmarks = np.column_stack([xy, mesh[:, 2] / scale]).astype(np.float32)
        return landmarks, float(1.0 / (1.0 + np.exp(-presence.reshape(()))))

    def _read(self, landmarks: Floats) -> Floats:
        (values,) = self._blendshapes(landmarks[None, BLENDSHAPE_POINTS, :2])
        coefficients = np.zeros(ACTION_COUNT, np.float32)
        coefficients[: ACTION_COUNT - 1] = values[1:]  # the first is MediaPipe's "_neutral"
        return coefficients


class _Net:
    """One tflite network: arrays in, arrays out."""

    def __init__(self, name: str, threads: int) -> None:
        self._interpreter = Interpreter(
            str(verified(WEIGHTS / f"{name}.tflite")), num_threads=threads
        )
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [d["index"] for d in self._interpreter.get_output_details()]

    def __call__(self, x: Floats) -> list[Floats]:
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(x, np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def _anchors() -> Floats:
    """(896, 2) anchor centres, 0..1: strides 16, 32, 32, 32 at 256 px, two anchors a cell each."""
    grids = []
    for stride, repeat in ((16, 2), (32, 6)):
        n = DETECTOR_SIDE // stride
        y, x = np.divmod(np.arange(n * n), n)
        centres = np.stack([(x + 0.5) / n, (y + 0.5) / n], axis=1)
        grids.append(np.repeat(centres, repeat, axis=0))
    return np.concatenate(grids).astype(np.float32)


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of ``side`` begin that cover ``length``, overlapping by a third or more."""
    if length <= side:
        return [0]
    count = 1 + -(-(length - side) * 3 // (2 * side))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _roll(landmarks: Floats) -> float:
    """Radians by which the line through the outer eye corners is off the horizontal."""
    across = landmarks[263, :2] - landmarks[33, :2]
    return float(np.arctan2(across[1], across[0]))


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(points: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each (centre, half extent) box with ``one``."""
    low = np.maximum(points[:, 0] - points[:, 1], one[0] - one[1])
    high = np.minimum(points[:, 0] + points[:, 1], one[0] + one[1])
    inter = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = 4 * np.prod(points[:, 1], axis=1)
    return inter / (areas + 4 * np.prod(one[1]) - inter + 1e-9)
