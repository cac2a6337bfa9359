"""What head, brows, eyes, cheeks and smile do beside the network's mouth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import soundfile

from model.audio.log_mel import HOP, LOG_MEL, PREFIX, silence_row
from model.audio.stream import SpeechStream, windows_of
from model.motion.emotions import EMOTIONS
from model.motion.nonverbal import CARRY_DIM, perform
from model.motion.rollout import reference_of
from model.portrait.blendshapes import (
    ACTION_COUNT,
    ACTIONS,
    EYES,
    MOTION_DIM,
    MOUTH,
    ROTATION,
    TRANSLATION,
    from_motion,
    shown_motion,
)
from model.rendering.face_model import lip_gaps
from model.types import (
    FPS,
    NATURAL,
    Behaviour,
    Floats,
    Guidance,
    SessionState,
    Window,
    WindowTask,
)
from server.api.protocol import Emotion
from training.losses import CLOSED_GAP

MINUTES = 10
BROWS = [i for i, name in enumerate(ACTIONS) if name.startswith("brow")]
CHEEKS = [i for i, name in enumerate(ACTIONS) if name.startswith("cheekSquint")]
SMILE = [i for i, name in enumerate(ACTIONS) if name.startswith("mouthSmile")]
BLINKS = [i for i, name in enumerate(ACTIONS) if name.startswith("eyeBlink")]
ACROSS = ACTIONS.index("eyeLookOutLeft"), ACTIONS.index("eyeLookInLeft")
REFERENCE = reference_of(np.zeros(64, np.float32))
START = SessionState(3, np.zeros((PREFIX, MOTION_DIM), np.float32))


def samples() -> Floats:
    return soundfile.read("docs/examples/speech.wav", dtype="float32")[0]


@pytest.fixture(scope="module")
def speech() -> list[Window]:
    """The windows of the example's speech."""
    return windows_of(samples())


def steps(
    windows: list[Window], behaviour: Behaviour = NATURAL, state: SessionState = START
) -> Iterator[tuple[Floats, SessionState]]:
    """Each window's rows and the state after it, over a network that does nothing."""
    still = np.zeros((HOP, MOTION_DIM), np.float32)
    for window in windows:
        rows = perform(WindowTask(window, state, REFERENCE, Guidance(1, 1), 2, behaviour), still)
        state = state.after(rows, window.frames)
        yield rows[: window.frames], state


def shown(
    windows: list[Window], behaviour: Behaviour = NATURAL, state: SessionState = START
) -> Floats:
    """(T, 58)"""
    return np.concatenate([shown_motion(rows) for rows, _ in steps(windows, behaviour, state)])


def looped(windows: list[Window], minutes: float) -> list[Window]:
    whole = [w for w in windows if w.frames == HOP]
    return [whole[i % len(whole)] for i in range(round(minutes * 60 * FPS / HOP))]


@pytest.fixture(scope="module")
def lasting(speech: list[Window]) -> Floats:
    """Ten minutes of it."""
    return shown(looped(speech, MINUTES))


def blinks(motion: Floats) -> int:
    shut = motion[:, BLINKS[0]] > 0.9
    return int((shut[1:] & ~shut[:-1]).sum())


def test_faces_are_as_lively_as_people_who_talk(lasting: Floats) -> None:
    pitch, yaw, roll = np.degrees(lasting[:, ROTATION]).std(0)
    assert 2.0 < pitch < 4.5 and 1.2 < yaw < 3.0 and 0.9 < roll < 2.5
    speed = np.linalg.norm(np.diff(np.degrees(lasting[:, ROTATION]), axis=0), axis=1) * FPS
    assert 2.0 < np.median(speed) < 5.5
    assert speed.max() < 60.0  # no jumps, at window borders or elsewhere
    assert 0.06 < lasting[:, BROWS[2]].std() < 0.25
    assert 0.08 < lasting[:, SMILE].std() < 0.25
    assert 8 <= blinks(lasting) / MINUTES <= 30


def test_nothing_drifts(lasting: Floats) -> None:
    minutes = np.split(lasting, MINUTES)
    turned = np.degrees([m[:, ROTATION].mean(0) for m in minutes])
    assert np.abs(turned).max() < 1.3
    assert np.abs(turned[:5].mean(0) - turned[5:].mean(0)).max() < 0.6


def test_the_mouth_is_the_networks_and_the_network_sees_its_own(speech: list[Window]) -> None:
    latents = np.random.default_rng(0).normal(0, 0.1, (HOP, MOTION_DIM)).astype(np.float32)
    rows = perform(WindowTask(speech[0], START, REFERENCE, Guidance(1, 1), 2), latents)
    assert rows.shape == (HOP, MOTION_DIM + CARRY_DIM)
    smiling = [name.startswith(("mouthSmile", "mouthDimple")) for name in ACTIONS]
    mouth = np.flatnonzero(MOUTH & ~np.array(smiling))
    np.testing.assert_array_equal(shown_motion(rows)[:, mouth], latents[:, mouth])
    np.testing.assert_array_equal(START.after(rows, HOP).prefix[-HOP:], latents)


def test_another_worker_and_other_windows_give_the_same(speech: list[Window]) -> None:
    whole = shown(speech[:8])
    *_, (_, state) = steps(speech[:4])
    resumed = SessionState.from_bytes(state.to_bytes())
    np.testing.assert_array_equal(shown(speech[4:8], state=resumed), whole[4 * HOP :])
    stream = SpeechStream(LOG_MEL)
    stream.push(samples())
    parts = []
    for index in range(16):
        parts.append(stream.window(index, HOP // 2))
        stream.skip(HOP // 2)
    np.testing.assert_allclose(shown(parts), whole, atol=1e-4)
    assert np.abs(shown(speech[:8], state=replace(START, seed=4)) - whole).max() > 0.02


def test_a_face_lives_in_silence_and_nods_to_nothing() -> None:
    silence = Window(0, np.broadcast_to(silence_row(), (LOG_MEL.frames, *silence_row().shape)), HOP)
    idle = shown([silence] * 190)  # a minute
    assert np.degrees(idle[:, ROTATION]).std(0).min() > 0.3
    assert np.abs(np.diff(np.degrees(idle[:, ROTATION]), axis=0)).max() * FPS < 12.0
    assert blinks(idle) >= 4 and idle[:, BROWS].max() < 0.1


@pytest.mark.parametrize(
    ("option", "columns", "nothing"),
    [
        ("head_motion", [*range(ROTATION.start, TRANSLATION.stop)], 0.0),
        ("expressiveness", [*BROWS, *CHEEKS, *SMILE], 0.0),
    ],
)
def test_a_scale_goes_from_nothing_to_twice_as_much(
    speech: list[Window], option: str, columns: list[int], nothing: float
) -> None:
    by_scale = [shown(speech, Behaviour(**{option: scale}))[:, columns] for scale in (0, 0.5, 1, 2)]
    assert np.abs(by_scale[0]).max() == nothing
    np.testing.assert_allclose(by_scale[1], 0.5 * by_scale[2], atol=1e-5)
    np.testing.assert_allclose(by_scale[3], 2.0 * by_scale[2], atol=1e-5)


def test_eyes_that_look_into_the_camera_only_counter_the_head(speech: list[Window]) -> None:
    held = shown(speech, Behaviour(gaze="camera"))
    across = held[:, ACROSS[0]] - held[:, ACROSS[1]]
    assert np.corrcoef(across, held[:, ROTATION.start + 1])[0, 1] < -0.999
    natural = shown(speech)
    wandering = natural[:, ACROSS[0]] - natural[:, ACROSS[1]]
    assert wandering.std() > 1.2 * across.std()


def test_blink_rate_goes_from_none_to_many(speech: list[Window]) -> None:
    windows = looped(speech, 1.5)
    counts = [blinks(shown(windows, Behaviour(blink_rate=rate))) for rate in (0, 0.5, 1, 3)]
    assert counts[0] == 0 and counts == sorted(counts) and counts[3] > 1.8 * counts[2]


def test_no_video_begins_with_a_blink(speech: list[Window]) -> None:
    begun = [shown(speech[:1], state=replace(START, seed=seed)) for seed in range(60)]
    assert max(motion[0, BLINKS].max() for motion in begun) == 0.0
    assert any(motion[:, BLINKS].max() == 1.0 for motion in begun)


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_lips_close_under_every_emotion_which_grows_with_its_strength(
    speech: list[Window], emotion: str
) -> None:
    rest = np.full(ACTION_COUNT, 0.05, np.float32)
    faces = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        acting = Behaviour(expressiveness=0, emotion=emotion, emotion_strength=strength)
        coefficients, _ = from_motion(shown(speech[:2], acting), rest)
        assert lip_gaps(coefficients)[:, 4].max() < CLOSED_GAP  # the network's lips are closed
        faces.append(coefficients[:, ~EYES])
    changes = [float(np.abs(face - faces[0]).sum(axis=1).mean()) for face in faces]
    assert changes == sorted(changes) and changes[-1] > 1.0


def test_every_emotion_of_the_api_is_known() -> None:
    assert get_args(Emotion) == ("neutral", *EMOTIONS)


def test_a_listener_nods_and_a_thinker_looks_aside(speech: list[Window]) -> None:
    silence = Window(0, np.broadcast_to(silence_row(), (LOG_MEL.frames, *silence_row().shape)), HOP)
    idle, listening, thinking = (
        shown([silence] * 60, Behaviour(state=state)) for state in ("idle", "listening", "thinking")
    )
    down = [np.diff(np.degrees(face[:, ROTATION.start])) * FPS for face in (idle, listening)]
    assert down[1].max() > 2 * down[0].max()
    across = [(face[:, ACROSS[0]] - face[:, ACROSS[1]])[50:].mean() for face in (idle, thinking)]
    assert across[1] > across[0] + 0.2
    state = Behaviour(state="listening")
    spoken = shown(speech[3:9], state) - shown(speech[3:9])
    assert np.abs(np.degrees(spoken[-8:, ROTATION])).max() < 1.0  # speech goes before


def test_an_update_never_jumps(speech: list[Window]) -> None:
    *_, (before, state) = steps(speech[:6], Behaviour(head_motion=2, expressiveness=2))
    still = Behaviour(head_motion=0, expressiveness=0, gaze="camera", emotion="happy")
    after = shown(speech[6:], still, state)
    joined = np.concatenate([shown_motion(before), after])
    degrees = np.abs(np.diff(np.degrees(joined[:, ROTATION]), axis=0))
    assert degrees.max() * FPS < 60.0
    assert np.abs(np.diff(joined[:, BROWS], axis=0)).max() < 0.25
    assert np.abs(after[-10:, ROTATION]).max() < 0.01
