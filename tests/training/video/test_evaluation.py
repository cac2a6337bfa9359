"""Metrics of videos, and their table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fada.cli.evaluate_video import add_arguments, run
from model.portrait.face_tracker import FaceTracker
from model.video.config import TinyConfig
from model.video.space import face_square
from model.video.tiny import TinyNet, tiny_student_of
from model.video.weights import save_net
from model.weights_file import weights_metadata
from tests.model.video.small_students import unet
from training.data.tracking import TrackedFrame
from training.video.clips import ClipPiece, write_clips
from training.video.metrics import (
    MobileNetV2,
    border_flicker,
    contact_sheet,
    flicker,
    load_mobilenet,
    mouth_figures,
    psnr,
    ssim,
)

Pictures = NDArray[np.uint8]


@pytest.fixture(scope="module")
def face(examples: Path) -> Pictures:
    """(64, 64, 3) a square around a face."""
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    found = FaceTracker().find(np.asarray(portrait, np.uint8))
    return np.asarray(face_square(found.landmarks, 64).cut(portrait, 0), np.uint8)


def test_psnr_and_ssim_fall_with_noise(face: Pictures) -> None:
    true = np.stack([face] * 3)
    noise = np.random.default_rng(0).normal(0, 10, true.shape)
    noisy = (true + noise).clip(0, 255).astype(np.uint8)
    assert ssim(true, true) == pytest.approx(1.0)
    assert 0.2 < ssim(noisy, true) < 0.95
    assert psnr(noisy, true) == pytest.approx(28.1, abs=1.0)
    corner = np.zeros((64, 64), np.float32)
    corner[:8, :8] = 1.0
    noisy[:, :8, :8] = true[:, :8, :8]
    assert psnr(noisy, true, corner) > 70 > psnr(noisy, true)


def test_flicker_ignores_steady_change() -> None:
    steady = np.arange(0, 120, 5, np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    trembling = steady.copy()
    trembling[::2] += 6
    assert flicker([steady]) == 0.0 and flicker([trembling]) > 10
    jumping = np.full((24, 8, 8, 3), 50, np.uint8)
    jumping[8:16] = 70  # a window of its own
    jumping[3] += 1
    assert border_flicker([jumping]) > 5


def opened(gap: float) -> TrackedFrame:
    shape = np.zeros((478, 3), np.float32)
    shape[14, 1] = gap
    return TrackedFrame(
        np.zeros(52, np.float32), np.eye(3, 4), np.zeros((62, 2), np.float32), shape
    )


def test_late_lips_are_detected() -> None:
    gaps = 0.1 + 0.1 * np.random.default_rng(0).random(60)
    true = [opened(gap) for gap in gaps]
    late = [opened(gap) for gap in np.concatenate([[0.1, 0.1], gaps[:-2]])]
    exact, after = mouth_figures([true], [true]), mouth_figures([late], [true])
    assert exact["lip gap r"] == pytest.approx(1.0) and exact["at lag, ms"] == 0
    assert exact["lips off, % of eye distance"] == 0
    assert after["at lag, ms"] == 80 and after["lip gap r"] < 0.5
    still = mouth_figures([[opened(0.1)] * 60], [true])
    assert still["lip gap r"] == 0 and "at lag, ms" not in still
    assert mouth_figures([[None] * 60], [true]) == {"face found": 0.0}


def test_a_constant_lip_gap_does_not_correlate() -> None:
    openness = 0.02 * np.random.default_rng(0).random((2, 60))
    true = [
        [opened(rest + gap) for gap in gaps]
        for rest, gaps in zip((0.0, 0.2), openness, strict=True)
    ]
    still = [[opened(rest)] * 60 for rest in (0.0, 0.2)]
    assert mouth_figures(still, true)["lip gap r"] == 0


def test_a_contact_sheet_has_one_row_per_video(face: Pictures) -> None:
    video = np.stack([face] * 9)
    assert contact_sheet(4, 2, [video, video]).shape == (2 * 128, 4 * 128, 3)
    with pytest.raises(ValueError, match="one length"):
        contact_sheet(4, 2, [video, video[:5]])


@pytest.fixture
def folder(face: Pictures, make_piece: Callable[..., ClipPiece], tmp_path: Path) -> Path:
    pieces = [replace(make_piece(k, 16), frames=np.stack([face] * 16)) for k in range(20)]
    return write_clips(tmp_path / "clips", pieces, frames=320, side=64).folder


def test_all_rows_are_in_one_table(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = TinyNet(TinyConfig(side=64, audio_layers=1, unet=unet(48, 16, 2, False)))
    save_net(tmp_path / "teacher.safetensors", teacher, weights_metadata("teacher", 25, 1))
    metadata = weights_metadata("student", 6, 1, limits=((1.0, 4.0), (1.0, 3.0)))
    save_net(tmp_path / "student.safetensors", tiny_student_of(teacher, True), metadata)
    torch.save(MobileNetV2().state_dict(), tmp_path / "mobilenet.pth")
    out = tmp_path / "docs" / "table.md"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = [
        "--data",
        folder,
        "--out",
        out,
        "--clips",
        2,
        "--mobilenet",
        tmp_path / "mobilenet.pth",
    ]
    words += ["--row", f"teacher={tmp_path / 'teacher.safetensors'}:1"]
    words += ["--row", f"fast={tmp_path / 'student.safetensors'}:2"]
    assert run(parser.parse_args([str(word) for word in words])) == 0
    table = out.read_text()
    assert "| | true video | still portrait | teacher, 3 NFE | fast, 2 NFE |" in table
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert {"PSNR, dB", "SSIM", "lip gap r", "flicker", "Fréchet distance"} <= rows.keys()
    # what is untrained adds nothing to the portrait, which here never moves
    assert rows["face found"] == "| face found | 1.000 | 1.000 | 1.000 | 1.000 |"
    picture = cv2.imread(str(out.with_name("table-1.png")))
    assert picture.shape == (3 * 128, 12 * 128, 3)

    for row, problem in (("teacher", "expected NAME=WEIGHTS"), ("x=y:0", "expected NAME=WEIGHTS")):
        with pytest.raises(ValueError, match=problem):
            run(parser.parse_args(["--data", str(folder), "--out", str(out), "--row", row]))


def test_a_file_without_mobilenet_is_rejected(tmp_path: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="these weights do not fit"):
        load_mobilenet(tmp_path / "other.pth")
