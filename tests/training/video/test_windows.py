"""Folders of clips, and the windows drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.audio.log_mel import PREFIX, silence_row
from model.video.tiny import PatchCodec
from training.video.clips import ClipPiece, VideoClips, lip_gaps, load_clips, write_clips
from training.video.windows import (
    VideoWindows,
    held_out_clips,
    latents_of,
    training_clips,
)

KEPT = 2


def windows_of(clips: VideoClips, seed: int = 0) -> VideoWindows:
    random = torch.Generator().manual_seed(seed)
    chosen = training_clips(clips)
    return VideoWindows(
        clips,
        chosen,
        PatchCodec(1),
        prefix_frames=KEPT,
        random=random,
        device=torch.device("cpu"),
    )


def test_a_folder_returns_the_stored_clips(
    clips: VideoClips, make_piece: Callable[..., ClipPiece]
) -> None:
    piece, clip = make_piece(3), clips.clips[3]
    assert (clip.name, clip.frames, clip.text) == ("clip3", 40, "ah")
    np.testing.assert_array_equal(clips.frames[clip.span], piece.frames)
    np.testing.assert_allclose(clips.sound(clip), piece.samples, atol=1e-4)
    np.testing.assert_array_equal(clips.marks[clip.span], piece.marks)
    gaps = lip_gaps(clips.marks[clip.span])
    np.testing.assert_allclose(gaps, (piece.marks[:, 5, 1] - piece.marks[:, 4, 1]) / 0.4, atol=1e-5)


def test_an_unfinished_folder_is_rejected(
    tmp_path: Path, make_piece: Callable[..., ClipPiece]
) -> None:
    def pieces() -> Iterator[ClipPiece]:
        yield make_piece(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clips(tmp_path, pieces(), frames=80, side=16)
    with pytest.raises(ValueError, match=r"holds no clips\.json"):
        load_clips(tmp_path)
    with pytest.raises(ValueError, match="40 frames, expected 80"):
        write_clips(tmp_path, [make_piece(0)], frames=80, side=16)
    write_clips(tmp_path, [make_piece(0)], frames=40, side=16)
    (tmp_path / "marks.npy").unlink()
    with pytest.raises(ValueError, match=r"holds no marks\.npy"):
        load_clips(tmp_path)


def test_held_out_and_badly_tracked_clips_are_not_drawn(clips: VideoClips) -> None:
    learned = {clip.name for clip in training_clips(clips)}
    assert [clip.name for clip in held_out_clips(clips, 5)] == ["clip9"]
    assert [clip.name for clip in held_out_clips(clips, 5, "clip")] == ["clip9"]
    assert held_out_clips(clips, 5, "rendered/") == []
    assert learned == {f"clip{k}" for k in range(12) if k != 9}
    index = json.loads((clips.folder / "clips.json").read_text())
    assert index["side"] == 16 and len(index["clips"]) == 12


def test_windows_of_a_run_are_consecutive(clips: VideoClips) -> None:
    first, second = windows_of(clips).draw_run(16, 2)
    torch.testing.assert_close(first.x0[:, -KEPT:], second.clean_prefix)
    torch.testing.assert_close(first.reference, second.reference)
    torch.testing.assert_close(first.audio[:, 8:], second.audio[:, :-8])
    again = windows_of(clips).draw_run(16, 2)[1]
    torch.testing.assert_close(second.x0, again.x0, rtol=0, atol=0)
    torch.testing.assert_close(second.audio, again.audio, rtol=0, atol=0)


def test_a_session_starts_from_its_portrait(clips: VideoClips) -> None:
    batch = windows_of(clips).draw(64)
    fresh = (batch.prefix == 0).flatten(1).all(1)
    assert 0 < fresh.sum() < 32
    firsts = np.array([clip.first for clip in training_clips(clips)], np.int64)
    openings = latents_of(clips, firsts, PatchCodec(1))
    for i in fresh.nonzero()[:, 0].tolist():
        assert (openings == batch.reference[i]).flatten(1).all(1).any()
        # before a recording's first sample there is silence, or another room's noise
        assert float(batch.audio[i, : PREFIX - 2].mean()) < float(batch.audio[i].mean())


def test_mouth_openness_targets_follow_the_sound(clips: VideoClips) -> None:
    batch = windows_of(clips).draw_audio(256)
    assert batch.known.any() and not batch.known.all()
    assert batch.mouth.shape[2] == windows_of(clips).mouth_dim
    whole = batch.known.all(1)  # each window has a level of its own: within them
    loudness, gap = (
        (x - x.mean(1, keepdim=True)).flatten()
        for x in (batch.audio.mean(2)[whole], batch.mouth[..., -1][whole])
    )
    assert float(torch.corrcoef(torch.stack([loudness, gap]))[0, 1]) > 0.5
    assert np.isfinite(silence_row()).all()
