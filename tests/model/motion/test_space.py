"""A portrait is prepared once, and nobody draws into another's frame."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.lru import LRUCache
from model.motion import space as motion_space
from model.motion.space import MotionSpace
from model.portrait.image import load_picture
from model.rendering.renderer import PortraitRenderer
from model.types import Reference


@pytest.fixture(scope="module")
def space() -> MotionSpace:
    return MotionSpace()


@pytest.fixture(scope="module")
def reference(space: MotionSpace, examples: Path) -> Reference:
    return space.encode_reference(load_picture((examples / "presenter.jpg").read_bytes()))


@pytest.fixture
def asked(space: MotionSpace, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The size and framing of each renderer that ``space`` prepares, of which it keeps two."""
    prepare, asked = motion_space._prepare, list[tuple[int, str]]()

    def counted(reference: Reference, size: int, framing: str, *rest: Any) -> PortraitRenderer:
        asked.append((size, framing))
        return prepare(reference, size, framing, *rest)

    monkeypatch.setattr(motion_space, "_prepare", counted)
    monkeypatch.setattr(space, "_renderers", LRUCache(2))
    return asked


def test_the_same_portrait_is_prepared_once(
    space: MotionSpace, reference: Reference, asked: list[tuple[int, str]]
) -> None:
    again = Reference.from_bytes(reference.to_bytes())
    space.decoder(reference, 128, "portrait")
    space.decoder(again, 128, "portrait")
    assert asked == [(128, "portrait")]
    space.decoder(reference, 128, "full")
    space.decoder(reference, 128, "portrait")
    space.decoder(reference, 130, "portrait")  # one too many: 'full' goes
    space.decoder(reference, 128, "portrait")
    assert asked == [(128, "portrait"), (128, "full"), (130, "portrait")]
    space.decoder(reference, 128, "full")
    assert asked[3:] == [(128, "full")]
    space.decoder(reference, 128, "full", background=(0, 255, 0))
    assert asked[4:] == [(128, "full")]


@pytest.mark.parametrize("name", ["picture", "landmarks", "coefficients", "person"])
def test_another_portrait_is_another(
    space: MotionSpace, reference: Reference, asked: list[tuple[int, str]], name: str
) -> None:
    space.decoder(reference, 128, "portrait")
    changed = reference.arrays[name].copy()
    changed.flat[-1] = changed.flat[-1] + 1
    other = replace(reference, arrays={**reference.arrays, name: changed})
    space.decoder(other, 128, "portrait")
    assert len(asked) == 2


def test_sessions_of_one_portrait_draw_at_once(space: MotionSpace, reference: Reference) -> None:
    random = np.random.default_rng(0)
    motions = 0.2 * random.random((4, 6, 58), np.float32)
    alone = [
        np.stack([frame.copy() for frame in space.decoder(reference, 128, "portrait").decode(part)])
        for part in motions
    ]
    renderers = [space.decoder(reference, 128, "portrait") for _ in motions]

    def draw(place: int) -> list[np.ndarray]:
        return [frame.copy() for frame in renderers[place].decode(motions[place])]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for drawn, truth in zip(pool.map(draw, range(4)), alone, strict=True):
                np.testing.assert_array_equal(np.stack(drawn), truth)


def test_none_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="size = 0"):
        LRUCache(0)
