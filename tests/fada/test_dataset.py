"""`fada dataset build`, from real small videos to what training reads."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fada.cli import main
from fada.cli.dataset import nearest
from model.types import SAMPLES_PER_FRAME
from tests.model.video.small_students import write_video as write_networks
from tests.server.footage_files import CLICK_S, write_video
from training.video.clips import load_clips
from training.video.losses import mouths


def build(*words: str | Path) -> int | str | None:
    """Its exit status, or its message before it exits with 1."""
    with pytest.raises(SystemExit) as ended:
        main(["dataset", "build", *(str(word) for word in words)])
    return ended.value.code


@pytest.fixture
def videos(tmp_path: Path, examples: Path) -> Path:
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    small = np.asarray(cv2.resize(portrait, (256, 256)), np.uint8)
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    write_video(folder / "talk.mp4", small, 30, seconds=2.4)
    (folder / "talk.srt").write_text("1\n00:00:00,200 --> 00:00:02,300\nHello.\n")
    write_video(folder / "more" / "wall.mp4", np.full_like(small, 90), 25, seconds=2.4)
    (folder / "more" / "broken.mp4").write_bytes(b"no video at all")
    return folder


def test_videos_become_clips_and_are_prepared_once(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = write_networks(tmp_path)
    encoders = ("--vae", networks / "vae.safetensors", "--whisper", networks / "tiny.pt")
    out = tmp_path / "out"
    assert build(videos, "--out", out, *encoders) == 0
    said = capsys.readouterr().out
    assert "1 clips" in said and "of 1 videos" in said
    reasons = sorted(path.read_text() for path in (out / "parts").glob("*.skipped"))
    assert reasons[0].startswith("broken.mp4") and "a face is seen in 0 %" in reasons[1]

    clips = load_clips(out)
    (clip,) = clips.clips
    assert (clip.name, clip.text, clips.side) == ("talk/0", "Hello.", 64)
    assert clips.frames.shape == (60, 64, 64, 3) and clips.frames.std() > 20
    assert clips.latents is not None and clips.latents.shape == (60, 4, 16, 16)
    assert clips.tokens is not None and clips.tokens.shape == (60, 30, 10)
    centres, widths = mouths(torch.tensor(clips.marks))
    np.testing.assert_allclose(centres[:, 0], 0.5, atol=0.12)
    assert (centres[:, 1] > 0.55).all() and (centres[:, 1] < 0.85).all()
    assert (widths > 0.1).all() and (widths < 0.4).all()
    loud = np.abs(clips.sound(clip).reshape(60, SAMPLES_PER_FRAME)).mean(1)
    assert np.argmax(loud > 0.1) == round(CLICK_S * 25)
    assert {"sync_r", "sync_lag_ms", "sharpness", "pixels"} <= clip.scores.keys()
    assert clip.confidence < 0.2  # the mouth is still while this is spoken

    made = {path: path.stat().st_mtime_ns for path in (out / "parts").rglob("frames.npy")}
    assert build(videos, "--out", out, *encoders) == 0
    assert made == {path: path.stat().st_mtime_ns for path in made} and len(made) == 1
    assert "was begun with ClipSettings(side=64" in str(build(videos, "--out", out, "--side", 96))


def test_a_folder_without_a_talking_head_is_refused(tmp_path: Path) -> None:
    assert "holds no video" in str(build(tmp_path, "--out", tmp_path / "out"))
    assert "expected a multiple of 16" in str(
        build(tmp_path, "--out", tmp_path / "out", "--side", 40)
    )


def test_each_frame_is_the_picture_shown_closest_to_it() -> None:
    pictures = [(t, np.full((1, 1, 3), i, np.uint8)) for i, t in enumerate((0.0, 0.033, 0.066))]
    chosen = [(k, int(picture[0, 0, 0])) for k, picture in nearest(pictures, 4)]
    assert chosen == [(0, 0), (1, 1), (2, 2), (3, 2)]


def test_a_portraits_square_holds_hair_and_shoulders(videos: Path, tmp_path: Path) -> None:
    sizes = {}
    for view in ("face", "portrait"):
        clips_of = tmp_path / view
        assert build(videos / "talk.mp4", "--out", clips_of, "--view", view) == 0
        sizes[view] = mouths(torch.tensor(load_clips(clips_of).marks))[1].mean().item()
    assert sizes["portrait"] < 0.9 * sizes["face"]
