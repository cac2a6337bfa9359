"""Clips longer than a window: every frame is seen, and seams leave no trace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.diffusion.denoiser import Conditions
from model.video.clip import ClipDenoiser, windows


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 15), st.integers(0, 9))
def test_windows_cover_every_frame_once_each(
    frames: int, size: int, overlap: int, step: int
) -> None:
    overlap = min(overlap, size - 1)
    cut = windows(frames, size=size, overlap=overlap, step=step)
    assert set(torch.cat(cut).tolist()) == set(range(frames))
    for window in cut:
        assert len(set(window.tolist())) == len(window) == min(size, frames)


def test_an_overlap_as_long_as_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap = 4, expected 0 to 3"):
        windows(9, size=4, overlap=4, step=0)


def test_what_does_not_depend_on_the_window_comes_out_as_from_one_call() -> None:
    def each_frame_alone(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        assert x_t.shape[:2] == cond["audio"].shape[:2]
        return 2 * x_t + cond["audio"][..., :1] + cond["face"][:, None]

    x_t, t = torch.randn(2, 11, 3), torch.tensor([0.5, 0.5])
    cond = {"audio": torch.randn(2, 11, 4), "face": torch.randn(2, 3)}
    clip = ClipDenoiser(each_frame_alone, torch.tensor([1.0, 0.5]), size=4, overlap=1)
    torch.testing.assert_close(clip(x_t, t, cond), each_frame_alone(x_t, t, cond))


def test_windows_move_on_with_the_samplers_steps() -> None:
    seen: list[list[float]] = []

    def first_frames(x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        seen.append(x_t[0, :, 0].tolist())
        return x_t

    clip = ClipDenoiser(first_frames, torch.tensor([1.0, 0.667, 0.333]), size=4, overlap=1)
    for t in (1.0, 0.333):
        clip(torch.arange(7.0)[None, :, None], torch.tensor([t]), {})
    assert [window[0] for window in seen] == [0, 3, 6, 4, 0, 3]
