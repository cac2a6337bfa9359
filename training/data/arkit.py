"""ARKit captures as takes: Live Link Face's CSV, or JSON.

CSV, as Epic's Live Link Face app writes it: a header with ``Timecode`` (HH:MM:SS:FF, with or
without a fraction of a frame), ``BlendShapeCount``, ARKit's 52 names in PascalCase, and
``HeadYaw``, ``HeadPitch``, ``HeadRoll`` in radians; six columns turn the eyes and are not read, as
the ``EyeLook`` coefficients say the same.

JSON: a list of ``{"time": seconds, "coefficients": {name: 0..1 for ARKit's 52 names},
"rotation": [x, y, z]}``. The rotation is optional for all: a rotation vector in radians, x right,
y up, z towards the viewer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.portrait.blendshapes import ACTION_COUNT, ACTIONS, rotation_matrices
from model.rendering.face_model import lip_gaps
from model.types import FPS, Floats
from training.data.recordings import RecordedTake
from training.data.tracking import LONGEST_GAP_S, nearest_rotation

HEAD = ("HeadYaw", "HeadPitch", "HeadRoll")
_EYES = tuple(f"{side}Eye{turn}" for side in ("Left", "Right") for turn in ("Yaw", "Pitch", "Roll"))
_CSV_NAMES = tuple(name[0].upper() + name[1:] for name in ACTIONS)
_RATES = (24, 25, 30, 48, 50, 60)  # of timecodes
_MOST = 1.05  # a coefficient beyond it is of another scale than 0 to 1
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Capture:
    """R rows: ``time_s`` (R,) rising, ``coefficients`` (R, 52), ``rotation`` (R, 3, 3)."""

    time_s: NDArray[np.float64]
    coefficients: Floats
    rotation: NDArray[np.float64]


def read_capture(path: Path) -> Capture:
    """A ``.csv`` or ``.json`` capture. Raises ``ValueError`` for names that are missing or
    unknown, values of another scale, and times that do not rise."""
    read = {".csv": _read_csv, ".json": _read_json}.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected .csv or .json")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        capture = read(path)
        _check(capture)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a capture: {error!r}") from error
    except ValueError as error:  # also of text that is no UTF-8, no JSON or no number
        raise ValueError(f"{path}: {error}") from error
    return capture


def _check(capture: Capture) -> None:
    if len(capture.time_s) < 2:
        raise ValueError(f"{len(capture.time_s)} rows, expected two or more")
    back = np.flatnonzero(np.diff(capture.time_s) <= 0)
    if len(back):
        raise ValueError(f"row {back[0] + 2}: its time is not later than that of the row before")
    values = capture.coefficients
    wrong = ~np.isfinite(values) | (values < 1 - _MOST) | (values > _MOST)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        value = float(values[row, column])
        raise ValueError(f"row {row + 1}: {ACTIONS[column]} is {value:g}, expected 0 to 1")


def _check_names(given: Iterable[str], needed: Sequence[str], more: set[str]) -> None:
    names = set(given)
    missing = [name for name in needed if name not in names]
    unknown = sorted(names - set(needed) - more)
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"unknown names: {', '.join(unknown)}")


def _read_csv(path: Path) -> Capture:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        others = {"BlendShapeCount", *HEAD, *_EYES}
        _check_names(table.fieldnames or (), ("Timecode", *_CSV_NAMES), others)
        rows = list(table)
    turned = bool(rows) and all(name in rows[0] for name in HEAD)
    values = [[float(row[name]) for name in _CSV_NAMES] for row in rows]
    head = [[float(row[name]) for name in HEAD] if turned else [0.0] * 3 for row in rows]
    angles = np.array(head).reshape(-1, 3)
    if (np.abs(angles) > np.pi).any():
        raise ValueError(f"the head is turned by {np.abs(angles).max():g}, not in radians")
    return Capture(
        _timecodes([row["Timecode"] for row in rows]),
        np.array(values, np.float32).reshape(-1, ACTION_COUNT),
        head_rotations(angles),
    )


def head_rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, 3) yaw, pitch, roll in radians -> (R, 3, 3): roll first, then pitch, then yaw, about
    z (towards the viewer), x (right) and y (up)."""
    x, y, z = np.eye(3)
    yaw, pitch, roll = (a[:, None] for a in angles.T)
    turns = [rotation_matrices((a * axis).astype(np.float32)) for a, axis in
             ((yaw, y), (pitch, x), (roll, z))]  # fmt: skip
    return np.asarray(turns[0] @ turns[1] @ turns[2])


def _timecodes(codes: Sequence[str]) -> NDArray[np.float64]:
    """Seconds from the first. The rate is not written down: it is the smallest usual one that
    the frame numbers fit in."""
    parts = []
    for row, code in enumerate(codes, 1):
        numbers = code.split(":")
        try:
            parts.append([float(number) for number in numbers])
        except ValueError:
            parts.append([])
        if len(parts[-1]) != 4:
            raise ValueError(f"row {row}: timecode {code!r}, expected HH:MM:SS:FF")
    table = np.array(parts).reshape(-1, 4)
    most = float(table[:, 3].max(initial=0.0))
    rate = next((r for r in _RATES if most < r), None)
    if rate is None:
        raise ValueError(f"a timecode has frame {most:g}, at most {_RATES[-1]} a second")
    seconds = table @ np.array([3600.0, 60.0, 1.0, 1.0 / rate])
    # a capture may run past midnight
    days = np.cumsum(np.diff(seconds, prepend=seconds[:1]) < -_DAY_S / 2)
    return np.asarray(seconds + days * _DAY_S - seconds[:1])


def _read_json(path: Path) -> Capture:
    rows = json.loads(path.read_text("utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"a {type(rows).__name__}, expected a list of rows")
    for row in rows:
        _check_names(row, ("time", "coefficients"), {"rotation"})
        _check_names(row["coefficients"], ACTIONS, set())
    times = np.array([row["time"] for row in rows], np.float64)
    turns = np.array([row.get("rotation", (0.0, 0.0, 0.0)) for row in rows], np.float32)
    values = [[row["coefficients"][name] for name in ACTIONS] for row in rows]
    return Capture(
        times - times[:1],
        np.array(values, np.float32).reshape(-1, ACTION_COUNT),
        rotation_matrices(turns.reshape(-1, 3)),
    )


def lip_gap_of(coefficients: Floats) -> Floats:
    """(N, 52) -> (N,) how far the middles of the inner lips are apart, eye-corner distances.

    As a portrait's would be drawn (`geometry.lip_gaps`): a capture has no landmarks to measure it
    by. On GRID, which has, it correlates with the measured gap with r = 0.99, has its mean to
    0.001, and agrees in 97 % of all frames on whether lips are closed.
    """
    return lip_gaps(coefficients)[:, 4].astype(np.float32)


def capture_take(capture: Capture) -> RecordedTake:
    """At 25 frames a second: frame k is what the capture shows k/25 s after its first row,
    interpolated between rows; where rows are missing for long, frames are marked as lost."""
    frames = int(capture.time_s[-1] * FPS + 1e-6) + 1
    times = np.arange(frames) / FPS
    after = np.searchsorted(capture.time_s, times - 1e-9).clip(1, len(capture.time_s) - 1)
    before = after - 1
    span = capture.time_s[after] - capture.time_s[before]
    part = ((times - capture.time_s[before]) / span).clip(0.0, 1.0)
    mixed = _mix(capture.coefficients, before, after, part)
    coefficients = mixed.clip(0.0, 1.0).astype(np.float32)
    turned = _mix(capture.rotation, before, after, part)
    pose = np.zeros((frames, 3, 4))
    pose[:, :, :3] = np.stack([nearest_rotation(m) for m in turned])
    ok = span <= LONGEST_GAP_S
    return RecordedTake(coefficients, pose, ok, lip_gap=lip_gap_of(coefficients))


def _mix(
    rows: NDArray[np.floating],
    before: NDArray[np.intp],
    after: NDArray[np.intp],
    part: NDArray[np.float64],
) -> NDArray[np.float64]:
    share = part.reshape(-1, *[1] * (rows.ndim - 1))
    return np.asarray(rows[before] * (1 - share) + rows[after] * share)
