"""Resampling to 25 frames per second, head poses, clips, and the folder that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.motion.space import MotionSpace
from model.portrait.blendshapes import ACTIONS, rotation_matrices, rotation_vectors
from model.portrait.face_tracker import Face, FaceTracker
from model.rendering.face_model import face_basis
from model.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from training.data.corpus import grid_corpus, load_grid
from training.data.recordings import (
    MAX_CLIP_FRAMES,
    MIN_CLIP_FRAMES,
    Cue,
    Recording,
    TrackedMotion,
    collect_motion,
    cut_clips,
    load_motion,
    read_cues,
    save_motion,
    write_folder,
)
from training.data.tracking import (
    LANDMARK_INDEX,
    TimedFrame,
    TrackedFrame,
    at_video_rate,
    track,
    tracked_frame,
)

JAW = ACTIONS.index("jawOpen")


def look(jaw: float) -> TrackedFrame:
    coefficients = np.zeros(52, np.float32)
    coefficients[JAW] = jaw
    points = np.zeros((62, 2), np.float32)
    return TrackedFrame(coefficients, np.eye(3, 4), points, np.zeros((478, 3), np.float32))


def seen_at(rate: float, frames: int) -> list[TimedFrame]:
    """A jaw that opens by one every second."""
    return [(i / rate, look(i / rate)) for i in range(frames)]


@given(rate=st.floats(10, 60), seconds=st.floats(0.2, 20))
def test_any_frame_rate_is_resampled_to_25_per_second(rate: float, seconds: float) -> None:
    frames = max(2, round(rate * seconds))
    found = list(at_video_rate(seen_at(rate, frames)))
    assert abs(len(found) - frames / rate * FPS) <= 1 + FPS / rate
    jaws = [-1.0 if f is None else float(f.coefficients[JAW]) for f in found]
    np.testing.assert_allclose(jaws, np.arange(len(found)) / FPS, atol=0.003)


def test_25_frames_per_second_are_not_resampled() -> None:
    seen = seen_at(25, 40)
    assert list(at_video_rate(seen)) == [s[1] for s in seen]


def test_lost_faces_and_missing_pictures_are_not_bridged() -> None:
    seen = seen_at(25, 50)
    seen[10] = (seen[10][0], None)
    del seen[20:25]
    found = list(at_video_rate(seen))
    assert [i for i, f in enumerate(found) if f is None] == [10, 20, 21, 22, 23, 24]


@given(
    vector=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    x=st.floats(-5, 5),
    y=st.floats(-5, 5),
    depth=st.floats(30, 120),
)
@settings(deadline=None)
def test_a_known_head_pose_is_recovered(
    vector: tuple[float, float, float], x: float, y: float, depth: float
) -> None:
    width, height = 640, 480
    turn = rotation_matrices(np.array([vector], np.float32))[0]
    place = np.array([x, y, -depth])
    # through a camera of 63 degrees, all points at the depth of the head's middle
    centimetres = (face_basis().canonical * (1, -1, -1) * 8.9) @ turn.T
    focal = height / 2 / np.tan(np.radians(31.5))
    marks = np.zeros((478, 3), np.float32)
    marks[:468] = (centimetres + (x, y, 0)) * (1, -1, -1) * focal / depth
    marks[:, :2] += (width / 2, height / 2)
    face = Face(marks, np.zeros(52, np.float32), (0, 0, 1, 1), 1.0)
    found = tracked_frame(face, width, height)
    np.testing.assert_allclose(found.pose[:, 3], place, atol=0.01)
    angle = rotation_vectors(found.pose[None, :, :3] @ turn.T)
    np.testing.assert_allclose(angle, 0, atol=1e-3)
    np.testing.assert_allclose(found.shape[:468], face_basis().canonical, atol=1e-3)


def test_a_face_is_followed_and_found_again(examples: Path) -> None:
    portrait = cv2.cvtColor(cv2.imread(str(examples / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    tracker = FaceTracker()
    blank = np.full_like(portrait, 127)
    moved = np.roll(portrait, 12, axis=1)
    pictures: list[NDArray[np.uint8]] = [portrait, moved, blank, portrait]
    found = [f for _, f in track(((i / 25, p) for i, p in enumerate(pictures)), tracker)]
    first, second, none, again = found
    assert none is None and first is not None and second is not None and again is not None
    shift = (second.points - first.points)[:, 0] * portrait.shape[1]
    assert np.median(shift) == pytest.approx(12, abs=1.5)
    np.testing.assert_allclose(again.points, first.points, atol=1e-4)
    # both track at one face agree on what it does
    followed = tracker.follow(portrait, tracker.find(portrait))
    assert np.abs(followed.coefficients - first.coefficients).max() < 0.1


def test_the_motion_of_a_rendered_portrait_is_tracked(examples: Path) -> None:
    portrait = cv2.cvtColor(cv2.imread(str(examples / "presenter.jpg")), cv2.COLOR_BGR2RGB)
    space = MotionSpace()
    renderer = space.decoder(
        space.encode_reference(np.asarray(portrait, np.uint8)), 384, "portrait"
    )
    frame = np.arange(50)
    jaw = 0.2 * (1 - np.cos(frame / 3))
    yaw = 0.1 * np.sin(frame / 5)

    def pictures() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for i in frame.tolist():
            actions = renderer.rest.copy()
            actions[JAW] = jaw[i]
            pose = np.array([0, yaw[i], 0, 0, 0, 0], np.float32)
            yield i / FPS, renderer.render(actions, pose)

    motion = collect_motion(at_video_rate(track(pictures(), FaceTracker())))
    assert len(motion) == 50 and motion.ok.all()
    assert np.corrcoef(motion.coefficients[:, JAW], jaw)[0, 1] > 0.8
    turned = rotation_vectors(motion.pose[:, :, :3])[:, 1]
    assert np.corrcoef(turned, yaw)[0, 1] > 0.98
    assert 0.5 < np.ptp(turned) / np.ptp(yaw) < 1.5


@given(st.lists(st.booleans(), max_size=1200).map(lambda b: np.repeat(np.array(b, bool), 7)))
def test_clips_are_fully_tracked_disjoint_and_of_bounded_length(ok: NDArray[np.bool_]) -> None:
    clips = cut_clips(ok, None)
    for clip in clips:
        assert MIN_CLIP_FRAMES <= clip.stop - clip.first <= MAX_CLIP_FRAMES
        assert ok[clip.first : clip.stop].all()
    assert all(a.stop <= b.first for a, b in pairwise(clips))
    if ok.all() and len(ok) >= MIN_CLIP_FRAMES:
        assert sum(c.stop - c.first for c in clips) == len(ok)


def test_subtitles_give_the_bounds_and_texts_of_clips(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text(
        "1\r\n00:00:01,000 --> 00:00:04,000\r\nBin <i>blue</i> at\r\nF two now\r\n\r\n"
        "2\r\n00:00:06,500 --> 00:00:07,000\r\nSoon.\r\n\r\n"
        "3\r\n00:00:07,200 --> 00:00:10,000\r\nOr again.\r\n"
    )
    cues = read_cues(path)
    assert cues[0] == Cue(1.0, 4.0, "Bin blue at F two now")
    ok = np.ones(300, bool)
    clips = cut_clips(ok, cues)
    assert [(c.first, c.stop, c.text) for c in clips] == [
        (18, 108, "Bin blue at F two now"),
        (155, 258, "Soon. Or again."),
    ]
    ok[200] = False
    assert len(cut_clips(ok, cues)) == 1
    path.write_text("WEBVTT\n\n00:01.000 --> 00:02.500\nHello\n")
    assert read_cues(path) == [Cue(1.0, 2.5, "Hello")]
    path.write_text("nothing here")
    with pytest.raises(ValueError, match="holds no subtitle"):
        read_cues(path)


def recording(folder: Path, name: str, frames: int, *, seed: int) -> Recording:
    """A hum whose level opens a jaw; its tenth second is lost."""
    random = np.random.default_rng(seed)
    level = np.clip(np.sin(np.arange(frames) / 2), 0, 1)
    made = []
    for i in range(frames):
        one = look(0.02 + 0.4 * float(level[i]))
        one.points[LANDMARK_INDEX.searchsorted(33)] = (0.4, 0.3)
        one.points[LANDMARK_INDEX.searchsorted(263)] = (0.6, 0.3)
        one.points[LANDMARK_INDEX.searchsorted(14)] = (0.0, 0.02 * level[i])
        one.shape[:] = random.random((478, 3))
        made.append(None if 250 <= i < 275 else one)
    t = np.arange(frames * SAMPLES_PER_FRAME) / SAMPLE_RATE
    sound = np.repeat(level, SAMPLES_PER_FRAME) * np.sin(2 * np.pi * 300 * t) * 0.3
    path = folder / f"{name}.flac"
    soundfile.write(path, sound, SAMPLE_RATE)
    return Recording(name, collect_motion(made), path)


def test_training_reads_what_tracking_wrote(tmp_path: Path) -> None:
    recordings = [recording(tmp_path, "one", 700, seed=0), recording(tmp_path, "two", 260, seed=1)]
    clips = write_folder(recordings, tmp_path / "out")
    grid = load_grid(tmp_path / "out")
    assert [len(c) for c in grid.coefficients] == [c.stop - c.first for c in clips]
    assert [len(c) for c in grid.coefficients] == [250, 213, 212, 250]
    for coefficients, gap, sound in zip(grid.coefficients, grid.lip_gap, grid.samples, strict=True):
        level = (coefficients[:, JAW] - 0.02) / 0.4
        np.testing.assert_allclose(gap, 0.1 * level, atol=1e-3)
        loud = np.sqrt((sound.reshape(len(level), -1) ** 2).mean(1)) * np.sqrt(2) / 0.3
        # the coded sound is aligned with its motion
        assert np.corrcoef(loud, level)[0, 1] > 0.99
    assert len(grid_corpus(grid, np.ones(4, bool))) == 4


def test_motion_is_stored_unchanged(tmp_path: Path) -> None:
    motion = recording(tmp_path, "one", 100, seed=0).motion
    save_motion(tmp_path / "one.npz", motion)
    again = load_motion(tmp_path / "one.npz")
    for name, array in vars(motion).items():
        np.testing.assert_array_equal(getattr(again, name), array)


def test_recordings_without_clips_or_of_different_kinds_are_rejected(tmp_path: Path) -> None:
    short = recording(tmp_path, "one", MIN_CLIP_FRAMES - 1, seed=0)
    with pytest.raises(ValueError, match="no clip is left"):
        write_folder([short], tmp_path / "out")
    lips = TrackedMotion(np.zeros((9, 52), np.float32), np.zeros((9, 3, 4)), np.ones(9, bool),
                lip_gap=np.zeros(9, np.float32))  # fmt: skip
    with pytest.raises(ValueError, match="cannot share"):
        write_folder([short, Recording("two", lips, short.sound)], tmp_path / "out")
