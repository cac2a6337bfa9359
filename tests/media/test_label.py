from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from media.encoders import Encoding
from media.fmp4 import SAMPLE_RATE, FragmentedMP4Muxer
from media.label import LabelText, make_label
from tests.server.media_probe import pictures_of


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
@pytest.mark.parametrize("level", [16, 128, 235])
def test_a_label_stands_out_from_any_picture(size: int, level: int) -> None:
    y = np.full((size, size), level, np.uint8)
    u, v = (np.full((size // 2, size // 2), 200, np.uint8) for _ in range(2))
    label = make_label(LabelText("AI"), size, size)
    label.draw(y, u, v)
    rows, columns = slice(*label.rows), slice(*label.columns)
    corner = y[rows, columns].astype(int)
    assert corner.max() > 220 and np.median(corner) < 95  # white letters on a dark plate
    letters = np.flatnonzero((corner > 160).any(axis=1))
    assert letters[-1] - letters[0] >= 8  # pixels high
    assert corner.shape[0] * corner.shape[1] < 0.03 * size * size
    y[rows, columns] = level
    assert (y == level).all()  # nothing else was touched


def test_labels_are_the_same_every_time_and_in_every_frame() -> None:
    picture = np.full((128, 128, 3), 90, np.uint8)
    videos = []
    for text in ("AI", "AI", None):
        encoding = Encoding(label=None if text is None else LabelText(text))
        muxer = FragmentedMP4Muxer(128, 128, 25, encoding=encoding)
        fragment = muxer.add([picture] * 4, np.zeros(4 * SAMPLE_RATE // 25, np.float32))
        videos.append(muxer.init_segment() + fragment)
    assert videos[0] == videos[1] != videos[2]
    labelled, plain = (pictures_of(videos[k]).astype(int) for k in (0, 2))
    corner = (slice(None), slice(*make_label(LabelText("AI"), 128, 128).rows), slice(100, 126))
    assert all(np.abs(labelled - plain)[corner].max(axis=(1, 2, 3)) > 80)
    assert (picture == 90).all()  # the caller's


def test_long_labels_shrink_to_the_picture() -> None:
    label = make_label(LabelText("made by a machine, fada"), 128, 128)
    assert label.columns[0] >= 0 and label.columns[1] <= 128


@pytest.mark.parametrize("text", ["", " ", "x" * 25, "生成", "A\nI"])
def test_text_that_cannot_be_drawn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="label = "):
        LabelText(text)


def test_another_font_has_other_letters() -> None:
    fonts = pytest.importorskip("matplotlib").get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
    LabelText("Généré par IA", Path(fonts))
    with pytest.raises(ValueError, match="none.ttf"):
        LabelText("AI", Path("none.ttf"))
