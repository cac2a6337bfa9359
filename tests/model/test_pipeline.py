"""The shipped student behind the pipeline's contract, without drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.select import motion_engine
from model.audio.log_mel import HOP, PREFIX
from model.audio.stream import windows_of
from model.models import DEFAULT, Choice, load
from model.motion.rollout import MotionOnly, reference_of, roll_out
from model.pipeline import StudentPipeline, window_noise
from model.portrait.blendshapes import ACTIONS, MOTION_DIM, reference_features
from model.types import FPS, SAMPLE_RATE, Floats, Guidance, SessionState, Window, WindowTask

JAW = ACTIONS.index("jawOpen")


@pytest.fixture(scope="module")
def pipeline() -> StudentPipeline:
    return load(Choice((DEFAULT,)), space=MotionOnly())[DEFAULT]


@pytest.fixture(scope="module")
def compiled() -> StudentPipeline:
    """The same on this machine's engine, for long speech."""
    return load(Choice((DEFAULT,)), motion_engine=motion_engine, space=MotionOnly())[DEFAULT]


def features() -> Floats:
    return reference_features(np.full(52, 0.05, np.float32), None)


def some_windows(samples: int = SAMPLE_RATE, seed: int = 0) -> list[Window]:
    sound = 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    return windows_of(sound)


def task(
    pipeline: StudentPipeline,
    window: Window,
    state: SessionState,
    guidance: Guidance | None = None,
    steps: int = 6,
) -> WindowTask:
    scales = guidance or pipeline.metadata.guidance
    return WindowTask(window, state, reference_of(features()), scales, steps)


@settings(max_examples=8, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=5),
    steps=st.lists(st.sampled_from([1, 3, 6]), min_size=5, max_size=5),
)
def test_batched_equals_alone(
    pipeline: StudentPipeline, seeds: list[int], steps: list[int]
) -> None:
    windows = some_windows()
    tasks = [
        task(pipeline, windows[0], pipeline.start(seed), Guidance(1.0 + i, 1.0), n)
        for i, (seed, n) in enumerate(zip(seeds, steps, strict=False))
    ]
    for each, (latents, state) in zip(tasks, pipeline.step(tasks), strict=True):
        ((alone, after),) = pipeline.step([each])
        np.testing.assert_allclose(latents, alone, atol=2e-4)
        np.testing.assert_allclose(state.prefix, after.prefix, atol=2e-4)
        assert (state.window_index, state.frames_done) == (1, HOP)


def test_a_session_goes_on_from_its_bytes(pipeline: StudentPipeline) -> None:
    windows = some_windows()
    state = pipeline.start(5)
    for window in windows[:2]:
        ((_, state),) = pipeline.step([task(pipeline, window, state)])
    again = SessionState.from_bytes(state.to_bytes())
    here = pipeline.step([task(pipeline, windows[2], state)])
    there = pipeline.step([task(pipeline, windows[2], again)])
    np.testing.assert_array_equal(here[0][0], there[0][0])


def test_the_last_window_gives_only_its_real_frames(pipeline: StudentPipeline) -> None:
    motion = roll_out(
        pipeline,
        [np.zeros(700, np.float32)],
        [features()],
        seeds=[0],
        guidance=Guidance(1.5, 1.0),
        steps=6,
    )
    assert motion[0].shape == (2, MOTION_DIM)


def test_noise_belongs_to_session_and_window_alone() -> None:
    a = window_noise(2**63 - 1, 0, shape=(HOP, MOTION_DIM))
    np.testing.assert_array_equal(a, window_noise(2**63 - 1, 0, shape=(HOP, MOTION_DIM)))
    assert np.abs(a - window_noise(2**63 - 1, 1, shape=(HOP, MOTION_DIM))).max() > 1
    assert np.abs(a - window_noise(0, 0, shape=(HOP, MOTION_DIM))).max() > 1
    many = np.stack([window_noise(s, 3, shape=(HOP, MOTION_DIM)) for s in range(200)])
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("scale", [0.0, 10.0])
def test_no_option_blows_up(pipeline: StudentPipeline, steps: int, scale: float) -> None:
    state = pipeline.start(1)
    for window in some_windows():
        given = task(pipeline, window, state, Guidance(scale, scale), steps)
        ((latents, state),) = pipeline.step([given])
        assert np.isfinite(latents).all()
        assert latents[:, JAW].min() > -0.3 and latents[:, JAW].max() < 1.2
        assert np.abs(latents[:, 52:]).max() < 0.5


def test_silence_rests_with_closed_lips_for_a_minute(compiled: StudentPipeline) -> None:
    motion = roll_out(
        compiled,
        [np.zeros(60 * SAMPLE_RATE, np.float32)],
        [features()],
        seeds=[3],
        guidance=compiled.metadata.guidance,
        steps=compiled.metadata.steps,
    )[0]
    assert np.quantile(motion[:, JAW], 0.95) < 0.08
    assert np.abs(motion[:, 52:]).max() < 0.3
    assert motion[:, 52:55].std() > 1e-4  # head and eyes go on living


def test_wrong_tasks_are_refused_before_anything_runs(pipeline: StudentPipeline) -> None:
    windows, state = some_windows(), pipeline.start(0)
    good = task(pipeline, windows[0], state)
    with pytest.raises(ValueError, match="steps = 51"):
        pipeline.step([good, task(pipeline, windows[0], state, steps=51)])
    with pytest.raises(ValueError, match="window 1 came where window 0"):
        pipeline.step([task(pipeline, windows[1], state)])
    short = Window(0, windows[0].features[:5], 8)
    with pytest.raises(ValueError, match="features have shape"):
        pipeline.step([task(pipeline, short, state)])
    bad = SessionState(0, np.zeros((PREFIX, 4), np.float32))
    with pytest.raises(ValueError, match="prefix has shape"):
        pipeline.step([task(pipeline, windows[0], bad)])
    with pytest.raises(ValueError, match="seed"):
        pipeline.start(-1)
    with pytest.raises(ValueError, match="expected one of motion"):
        load(Choice(("nobody",)))


def test_the_shipped_student_says_what_it_is(pipeline: StudentPipeline) -> None:
    assert (pipeline.name, pipeline.space.name) == ("motion-fast", "motion")
    assert pipeline.metadata.steps == pipeline.metadata.nfe_per_window == 2
    assert FPS == 25
