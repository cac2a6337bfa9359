"""Real small videos: times, sound in place, turned pixels, and other files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from media.footage import open_footage, sound_of
from model.types import SAMPLE_RATE
from tests.server.footage_files import CLICK_S, write_video


@pytest.fixture(scope="module")
def picture(examples: Path) -> NDArray[np.uint8]:
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.resize(portrait, (192, 128)), np.uint8)


def onset_s(samples: NDArray[np.float32]) -> float:
    return float(np.argmax(np.abs(samples) > 0.1)) / SAMPLE_RATE


@pytest.mark.parametrize("rate", [24, 30])
def test_pictures_come_with_their_times(
    tmp_path: Path, picture: NDArray[np.uint8], rate: int
) -> None:
    footage = open_footage(write_video(tmp_path / "a.mp4", picture, rate, seconds=2.0))
    found = list(footage.pictures())
    np.testing.assert_allclose([t for t, _ in found], np.arange(2 * rate) / rate, atol=0.002)
    assert found[0][1].shape == picture.shape
    assert np.abs(found[5][1].astype(int) - picture).mean() < 8


def test_pictures_beyond_30_a_second_are_skipped(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    footage = open_footage(write_video(tmp_path / "a.mp4", picture, 60, seconds=1.0))
    assert len(list(footage.pictures())) == 30


@pytest.mark.parametrize("starts_s", [0.0, 0.4])
@pytest.mark.parametrize("container", ["a.mp4", "a.mkv"])
def test_sound_keeps_its_offset_from_the_pictures(
    tmp_path: Path, picture: NDArray[np.uint8], starts_s: float, container: str
) -> None:
    footage = open_footage(
        write_video(tmp_path / container, picture, 25, seconds=2.0, sound_starts_s=starts_s)
    )
    samples = np.concatenate(list(footage.sound()))
    assert onset_s(samples) == pytest.approx(CLICK_S, abs=0.01)
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=SAMPLE_RATE // 10)


def test_sound_before_the_start_is_dropped(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = write_video(tmp_path / "a.mp4", picture, 25, seconds=2.0)
    assert onset_s(np.concatenate(list(sound_of(path, 0.7)))) == pytest.approx(0.3, abs=0.01)


def test_pixels_that_are_not_square_are_resampled(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = write_video(tmp_path / "a.mkv", picture, 25, seconds=0.2, aspect=Fraction(2, 1))
    assert next(open_footage(path).pictures())[1].shape == (128, 384, 3)


def test_other_files_are_rejected(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="not a file"):
        open_footage(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(ValueError, match="not a video"):
        open_footage(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="has no sound"):
        open_footage(
            write_video(tmp_path / "mute.mp4", picture, 25, seconds=0.2, sound_starts_s=None)
        )
