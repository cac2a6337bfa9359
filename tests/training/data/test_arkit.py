"""ARKit recordings: names, times and scales are checked, rows become 25 frames a second."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.portrait.blendshapes import ACTIONS, head_angles, head_rotations, rotation_vectors
from model.types import FPS
from training.data.arkit import (
    HEAD,
    ARKitRecording,
    arkit_motion,
    lip_gap_of,
    read_arkit,
)

JAW = ACTIONS.index("jawOpen")
EYES = [f"{s}Eye{t}" for s in ("Left", "Right") for t in ("Yaw", "Pitch", "Roll")]
NAMES = [a[0].upper() + a[1:] for a in sorted(ACTIONS)]


def write_csv(path: Path, rate: int, frames: int, *, names: list[str], second: int = 0) -> Path:
    """A jaw that opens by a tenth a second, a head that turns as much."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Timecode", "BlendShapeCount", *names, *HEAD, *EYES])
        for i in range(frames):
            at = (second + i // rate) % 86_400
            code = f"{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}:{i % rate:02}.250"
            value = i / rate / 10
            shapes = [f"{value:.6f}" if name == "JawOpen" else "0.1" for name in names]
            table.writerow([code, 61, *shapes, f"{value:.6f}", 0, 0, *[0.3] * 6])
    return path


@pytest.mark.parametrize(("rate", "second"), [(60, 0), (30, 86_397), (24, 40)])
def test_live_link_rows_become_25_frames_a_second(tmp_path: Path, rate: int, second: int) -> None:
    capture = read_arkit(
        write_csv(tmp_path / "take.csv", rate, 5 * rate, names=NAMES, second=second)
    )
    motion = arkit_motion(capture)
    assert abs(len(motion) - 5 * FPS) <= 1
    np.testing.assert_allclose(motion.coefficients[:, JAW], np.arange(len(motion)) / 250, atol=1e-4)
    turned = rotation_vectors(motion.pose[:, :, :3])
    np.testing.assert_allclose(turned[:, 1], -np.arange(len(motion)) / 250, atol=1e-4)
    assert motion.ok.all()


def test_long_gaps_become_lost_frames(tmp_path: Path) -> None:
    capture = read_arkit(write_csv(tmp_path / "take.csv", 60, 300, names=NAMES))
    kept = (capture.time_s < 2) | (capture.time_s > 3)
    shorter = ARKitRecording(
        capture.time_s[kept], capture.coefficients[kept], capture.rotation[kept]
    )
    motion = arkit_motion(shorter)
    lost = np.flatnonzero(~motion.ok)
    assert abs(lost[0] - 50) <= 1 and abs(lost[-1] - 75) <= 1


def test_missing_and_unknown_names_are_named(tmp_path: Path) -> None:
    without = [n for n in NAMES if n not in ("TongueOut", "JawOpen")]
    with pytest.raises(ValueError, match="lacks JawOpen, TongueOut"):
        read_arkit(write_csv(tmp_path / "take.csv", 60, 9, names=without))
    with pytest.raises(ValueError, match="unknown names: JawBone"):
        read_arkit(write_csv(tmp_path / "take.csv", 60, 9, names=[*NAMES, "JawBone"]))
    rows = json_rows(9)
    del rows[4]["coefficients"]["mouthClose"]  # type: ignore[attr-defined]
    (tmp_path / "take.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="lacks mouthClose"):
        read_arkit(tmp_path / "take.json")


def json_rows(count: int) -> list[dict[str, object]]:
    return [
        {
            "time": 3.0 + i / 30,
            "coefficients": dict.fromkeys(ACTIONS, i / 300),
            "rotation": [0.0, 0.01 * i, 0.0],
        }
        for i in range(count)
    ]


def test_json_recordings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "take.json"
    path.write_text(json.dumps(json_rows(90)))
    motion = arkit_motion(read_arkit(path))
    assert abs(len(motion) - 75) <= 1
    np.testing.assert_allclose(motion.coefficients[:, 7], np.arange(len(motion)) / 250, atol=1e-4)
    turned = rotation_vectors(motion.pose[:, :, :3])[:, 1]
    np.testing.assert_allclose(turned, 0.012 * np.arange(len(motion)), atol=1e-3)
    rows = [{k: v for k, v in row.items() if k != "rotation"} for row in json_rows(9)]
    path.write_text(json.dumps(rows))
    np.testing.assert_array_equal(read_arkit(path).rotation, np.tile(np.eye(3), (9, 1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": 0.0}, "row 5: time is not later"),
        ({"coefficients": dict.fromkeys(ACTIONS, 40.0)}, "is 40, expected 0 to 1"),
        ({"coefficients": 3}, "not an ARKit recording"),
        ({"rotation": [1.0]}, "take.json: "),
        ({"speed": 1}, "unknown names: speed"),
    ],
)
def test_invalid_rows_are_rejected(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows = json_rows(9)
    rows[4] |= change
    path = tmp_path / "take.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        read_arkit(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1, 2]", "no json"])
def test_other_files_are_rejected(tmp_path: Path, text: str) -> None:
    for name in ("take.json", "take.csv", "take.txt"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match="take"):
            read_arkit(path)


def test_degrees_and_broken_timecodes_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "take.csv", 60, 9, names=NAMES)
    text = path.read_text()
    path.write_text(text.replace("0.001667,0,0,0.3", "12.5,0,0,0.3"))
    with pytest.raises(ValueError, match="expected radians"):
        read_arkit(path)
    path.write_text(text.replace("00:00:00:03.250", "0.125"))
    with pytest.raises(ValueError, match="row 4: timecode '0.125'"):
        read_arkit(path)


@given(st.tuples(*[st.floats(-1.2, 1.2)] * 3))
@settings(deadline=None)
def test_head_angles_are_rotations_that_keep_their_yaw(angles: tuple[float, float, float]) -> None:
    (matrix,) = head_rotations(np.array([angles]))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(matrix) == pytest.approx(1)
    # where the nose points: to the right by the yaw, whatever the roll
    nose = matrix @ (0, 0, 1)
    assert np.arctan2(nose[0], nose[2]) == pytest.approx(angles[0], abs=1e-5)
    assert np.arcsin(-nose[1]) == pytest.approx(angles[1], abs=1e-5)
    np.testing.assert_allclose(head_angles(matrix[None])[0], angles, atol=1e-5)


def test_an_open_jaw_parts_the_lips_and_a_closed_mouth_does_not() -> None:
    rows = np.zeros((3, 52), np.float32)
    rows[1, JAW] = 0.6
    rows[2, JAW], rows[2, ACTIONS.index("mouthClose")] = 0.6, 0.6
    closed, opened, pressed = lip_gap_of(rows)
    assert closed < 1e-6 and opened > 0.1 and pressed < 0.3 * opened
