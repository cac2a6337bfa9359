"""`fada track`, from real small media to what training reads."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from fada.cli import main
from model.portrait.blendshapes import ACTIONS, rotation_vectors
from model.types import SAMPLE_RATE, SAMPLES_PER_FRAME
from tests.server.fake_pipeline import BLUE_STEP, RED_STEP
from tests.server.footage_files import CLICK_S, write_video
from tests.server.media_files import picture, sound
from tests.server.service import FAKE
from training.data.arkit import arkit_motion, read_arkit
from training.data.corpus import grid_corpus, load_grid


def track(*words: str | Path) -> int | str | None:
    """Its exit status, or its message before it exits with 1."""
    with pytest.raises(SystemExit) as ended:
        main(["track", *(str(word) for word in words)])
    return ended.value.code


def test_footage_becomes_data_and_is_tracked_once(
    tmp_path: Path, examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    small = np.asarray(cv2.resize(portrait, (256, 256)), np.uint8)
    video = write_video(tmp_path / "talk.mp4", small, 30, seconds=2.4)
    text = tmp_path / "talk.srt"
    text.write_text("1\n00:00:00,200 --> 00:00:02,300\nHello.\n")
    out = tmp_path / "out"
    assert track(video, "--out", out, "--text", text) == 0
    assert "frames/s" in capsys.readouterr().out
    grid = load_grid(out)
    assert grid.texts == ["Hello."]
    # 0.3 s before its subtitle would be before the video
    assert len(grid.coefficients[0]) == 60
    loud = np.abs(grid.samples[0].reshape(60, SAMPLES_PER_FRAME)).mean(1)
    assert np.argmax(loud > 0.1) == round(CLICK_S * 25)
    assert grid.coefficients[0].std(0).max() < 0.02
    assert len(grid_corpus(grid, np.ones(1, bool)).motion) == 60
    # again, now with other clips: what was tracked is kept
    assert track(video, "--out", out) == 0
    assert "frames/s" not in capsys.readouterr().out
    assert load_grid(out).texts == [""]


def test_a_capture_with_its_sound_becomes_data(tmp_path: Path) -> None:
    level = np.clip(np.sin(np.arange(300) / 8), 0, 1)
    rows = [
        {"time": i / 60, "coefficients": dict.fromkeys(ACTIONS, 0.0) | {"jawOpen": level[i]}}
        for i in range(300)
    ]
    (tmp_path / "take.json").write_text(json.dumps(rows))
    soundfile.write(tmp_path / "take.wav", 0.1 * np.ones(5 * SAMPLE_RATE), SAMPLE_RATE)
    out = tmp_path / "out"
    assert track(tmp_path / "take.json", "--audio", tmp_path / "take.wav", "--out", out) == 0
    grid = load_grid(out)
    jaw = grid.coefficients[0][:, ACTIONS.index("jawOpen")]
    assert grid.landmarks is None and abs(len(jaw) - 125) <= 1
    assert np.corrcoef(jaw, grid.lip_gap[0])[0, 1] > 0.95
    assert len(grid_corpus(grid, np.ones(1, bool))) == 1


def test_motion_from_the_service_becomes_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    portrait, audio, take = tmp_path / "p.png", tmp_path / "a.flac", tmp_path / "take.csv"
    portrait.write_bytes(picture())
    audio.write_bytes(sound(5.0))
    with pytest.raises(SystemExit) as ended:
        main(["animate", str(portrait), str(audio), "--motion", str(take)])
    assert not ended.value.code
    out = tmp_path / "out"
    assert track(take, "--audio", audio, "--out", out) == 0
    grid = load_grid(out)
    frames = np.arange(len(grid.coefficients[0]))
    assert len(frames) == 125
    jaw = grid.coefficients[0][:, ACTIONS.index("jawOpen")]
    np.testing.assert_allclose(jaw, frames % 8 * BLUE_STEP / 255, atol=1e-4)
    turned = rotation_vectors(arkit_motion(read_arkit(take)).pose[:, :, :3])
    np.testing.assert_allclose(turned[:, 1], frames // 8 % 16 * RED_STEP / 255, atol=1e-4)


def test_what_cannot_be_tracked_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    grey = np.full((96, 96, 3), 128, np.uint8)
    faceless = write_video(tmp_path / "grey.mp4", grey, 25, seconds=1.0)
    said = track(faceless, "--out", out)
    assert isinstance(said, str) and "a face is seen in 0 % of 25 frames" in said
    sound, capture = tmp_path / "a.wav", tmp_path / "a.json"
    soundfile.write(sound, np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    none = dict.fromkeys(ACTIONS, 0.0)
    capture.write_text(json.dumps([{"time": t / 10, "coefficients": none} for t in range(60)]))
    for words, message in {
        (tmp_path / "none.mp4",): "is not a file",
        (sound,): "holds no pictures",
        (capture,): "--audio is needed for captures",
        (faceless, capture): "cannot share a folder",
        (faceless, "--text", faceless, faceless): "--text names 2 files, expected 1",
        (capture, "--audio", sound): "the sound ends after 1.0 s, the motion after 5.9 s",
    }.items():
        said = track(*words, "--out", out)
        assert isinstance(said, str) and message in said
    assert not (out / "motion.npz").exists()
