"""Motion as clients read it: 52 ARKit actions and head pose a frame, as JSON lines or a table.

Between worker and API a frame is `FRAME`: the actions in ARKit's order, then the pose. The table is
that of Epic's app Live Link Face.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ARKIT_ACTIONS = (
    "eyeBlinkLeft",
    "eyeLookDownLeft",
    "eyeLookInLeft",
    "eyeLookOutLeft",
    "eyeLookUpLeft",
    "eyeSquintLeft",
    "eyeWideLeft",
    "eyeBlinkRight",
    "eyeLookDownRight",
    "eyeLookInRight",
    "eyeLookOutRight",
    "eyeLookUpRight",
    "eyeSquintRight",
    "eyeWideRight",
    "jawForward",
    "jawRight",
    "jawLeft",
    "jawOpen",
    "mouthClose",
    "mouthFunnel",
    "mouthPucker",
    "mouthRight",
    "mouthLeft",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "noseSneerLeft",
    "noseSneerRight",
    "tongueOut",
)
# Radians about y (up), x (right) and z (towards the viewer), applied roll, pitch, yaw; then the
# translation in distances between the outer eye corners. All are relative to the portrait.
POSE = ("yaw", "pitch", "roll", "x", "y", "z")
# What a live session's `ready` says of motion.
MOTION_READY = {"mime": "application/json", "actions": ARKIT_ACTIONS, "pose": POSE}
FRAME = struct.Struct(f"<{len(ARKIT_ACTIONS) + len(POSE)}f")
FPS = 25  # `model.types.FPS`, which the API does not load
BYTES_PER_S = FPS * FRAME.size

_ACTIONS = len(ARKIT_ACTIONS)
_DECIMALS = 5
_LOOK = {
    name: ARKIT_ACTIONS.index(f"eyeLook{name}") for name in
    ("DownLeft", "InLeft", "OutLeft", "UpLeft", "DownRight", "InRight", "OutRight", "UpRight")
}  # fmt: skip
# Radians at a coefficient of 1, fitted to the eye columns of a capture.
_OUT, _IN, _DOWN, _UP = 0.68, 0.39, 0.61, 0.47

Row = Sequence[float]


@dataclass(frozen=True)
class MotionFormat:
    """``header`` by frames a second, and the text of frame number ``index``, each with its end of
    line: ``frame(index, row, fps)``."""

    media_type: str
    suffix: str
    header: Callable[[int], str]
    frame: Callable[[int, Row, int], str]

    def text(self, first_frame: int, data: bytes, fps: int) -> str:
        """Of packed frames."""
        rows = enumerate(unpack_frames(data), first_frame)
        return "".join(self.frame(index, row, fps) for index, row in rows)


def unpack_frames(data: bytes) -> Iterator[tuple[float, ...]]:
    """The rows of a fragment, rounded: 52 actions, then the pose."""
    for row in FRAME.iter_unpack(data):
        yield tuple(round(value, _DECIMALS) for value in row)


def split_row(row: Row) -> tuple[list[float], list[float]]:
    """A row's actions and its pose."""
    return list(row[:_ACTIONS]), list(row[_ACTIONS:])


def motion_message(fragment: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """A live session's message: the fields of ``fragment`` with its packed frames."""
    rows = [split_row(row) for row in unpack_frames(data)]
    values = {"actions": [actions for actions, _ in rows], "pose": [pose for _, pose in rows]}
    return {**fragment, "type": "motion", **values}


def pack_row(actions: Mapping[str, float], pose: Mapping[str, float]) -> Row:
    """A row from values by name."""
    return *(actions[name] for name in ARKIT_ACTIONS), *(pose[name] for name in POSE)


def _json_header(fps: int) -> str:
    return json.dumps({"fps": fps, "actions": ARKIT_ACTIONS, "pose": POSE}) + "\n"


def _json_frame(index: int, row: Row, fps: int) -> str:
    actions, pose = split_row(row)
    fields = {"t": round(index / fps, 3), "actions": actions, "pose": pose}
    return json.dumps(fields, separators=(",", ":")) + "\n"


def _table_header(fps: int) -> str:
    shapes = [name[0].upper() + name[1:] for name in ARKIT_ACTIONS]
    eyes = [f"{side}Eye{turn}" for side in ("Left", "Right") for turn in ("Yaw", "Pitch", "Roll")]
    head = ["HeadYaw", "HeadPitch", "HeadRoll"]
    return ",".join(["Timecode", "BlendShapeCount", *shapes, *head, *eyes]) + "\n"


def _table_frame(index: int, row: Row, fps: int) -> str:
    """Angles as Unreal Engine has them, with yaw and roll the other way round than in `POSE`."""
    seconds, frame = divmod(index, fps)
    code = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frame:02}.000"
    actions, (yaw, pitch, roll, *_) = split_row(row)
    at = {name: actions[place] for name, place in _LOOK.items()}
    eyes = [
        _IN * at["InLeft"] - _OUT * at["OutLeft"],
        _DOWN * at["DownLeft"] - _UP * at["UpLeft"],
        0.0,
        _OUT * at["OutRight"] - _IN * at["InRight"],
        _DOWN * at["DownRight"] - _UP * at["UpRight"],
        0.0,
    ]
    values = [*actions, -yaw, pitch, -roll, *eyes]
    numbers = ",".join(f"{value:.{_DECIMALS}f}" for value in values)
    return f"{code},{len(values)},{numbers}\n"


JSON_LINES = MotionFormat("application/x-ndjson", "jsonl", _json_header, _json_frame)
LIVE_LINK = MotionFormat("text/csv", "csv", _table_header, _table_frame)
