"""What a clip's confidence depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.video.clips import ClipPiece, write_clips
from training.video.confidence import clip_confidence, score_clips, sharpness

LATE = 3  # frames


def test_dubbed_and_still_clips_have_a_low_correlation(
    make_piece: Callable[..., ClipPiece], tmp_path: Path
) -> None:
    scores = {"sharpness": 1.0, "pixels": 1.0}
    pieces = [replace(make_piece(k, 75), scores=scores) for k in range(10)]
    other = make_piece(11, 75).samples[::-1].copy()
    pieces[4] = replace(pieces[4], samples=other)  # another voice
    pieces[6] = replace(pieces[6], marks=np.repeat(pieces[6].marks[:1], 75, axis=0))
    late = np.roll(pieces[8].marks, LATE, axis=0)
    pieces[8] = replace(pieces[8], marks=late)
    clips = score_clips(write_clips(tmp_path, pieces, frames=750, side=16))
    r = np.array([clip.scores["sync_r"] for clip in clips])
    spoken = np.delete(np.arange(10), [4, 6, 8])
    assert r[spoken].min() > 0.6 > r[4] and r[6] == 0
    assert clips[8].scores["sync_lag_ms"] == LATE * 40
    confidence = np.array([clip.confidence for clip in clips])
    assert (confidence[spoken] == 1).all() and confidence[6] == 0


def test_sharpness_falls_with_blur_but_not_with_contrast(examples: Path) -> None:
    picture = cv2.resize(cv2.imread(str(examples / "astronaut.jpg")), (96, 96))
    frames = np.stack([np.asarray(picture, np.uint8)] * 2)
    blurred = np.stack([np.asarray(cv2.GaussianBlur(p, (0, 0), 2), np.uint8) for p in frames])
    faint = (64 + frames.astype(np.float32) / 2).astype(np.uint8)
    assert sharpness(blurred) < 0.4 * sharpness(frames)
    assert sharpness(faint) == pytest.approx(sharpness(frames), rel=0.1)


def test_one_fault_lowers_the_confidence() -> None:
    good = {"sync_r": 0.6, "sharpness": 2.0, "pixels": 3.0}
    assert clip_confidence(good, 2.0) == 1.0
    assert clip_confidence(good | {"pixels": 0.5}, 2.0) == 0.5
    assert clip_confidence(good | {"sharpness": 0.5}, 2.0) == 0.5
    assert clip_confidence(good | {"sync_r": 0.1}, 2.0) == pytest.approx(0.25)
    assert clip_confidence(good | {"sync_r": -0.2}, 2.0) == 0.0
