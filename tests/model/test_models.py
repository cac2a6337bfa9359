"""Students by name: what is there, what is not there yet, and what is nobody's student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.audio.stream import SpeechStream, windows_of
from model.models import (
    WEIGHTS,
    Choice,
    load,
    motion_pipeline,
    names,
)
from model.motion.checkpoint import MotionWeights, load_weights, save_weights
from model.motion.network import MotionNet, NetConfig
from model.motion.rollout import MotionOnly, reference_of
from model.portrait.blendshapes import ACTIONS, MOTION_DIM, reference_features
from model.types import Floats, Guidance, WindowTask
from model.video.config import FaceLocatorConfig
from model.video.face_locator import FaceLocator
from model.video.weights import save_net
from model.weights_file import weights_metadata

FAST, BALANCED = "motion-fast", "motion-balanced"


def write(path: Path, role: str = "student", **metadata: object) -> Path:
    """A small network without tokens, with random parameters."""
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=32, heads=2, blocks=2))
    torch.nn.init.normal_(net.audio_to_motion.weight, std=0.05)  # else all branches are the same
    known = weights_metadata(role, 25 if role == "teacher" else 6, 1) | metadata
    save_weights(path, MotionWeights(net, torch.zeros(MOTION_DIM), torch.ones(MOTION_DIM), known))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What ships, with a balanced student beside the fast one."""
    (tmp_path / f"{FAST}.safetensors").symlink_to(WEIGHTS / f"{FAST}.safetensors")
    write(tmp_path / f"{BALANCED}.safetensors")
    return tmp_path


def test_a_kind_is_all_that_there_is_of_it(folder: Path) -> None:
    assert names(Choice(), folder) == (FAST, BALANCED)
    assert names(Choice((BALANCED, "motion")), folder) == (BALANCED, FAST)
    (folder / f"{BALANCED}.safetensors").unlink()
    assert names(Choice(), folder) == (FAST,)
    with pytest.raises(ValueError, match=f"{BALANCED} has no weights here yet: .* is missing"):
        names(Choice((BALANCED,)), folder)
    with pytest.raises(ValueError, match="model = 'nobody', expected one of motion"):
        names(Choice(("nobody",)), folder)


def test_both_students_are_loaded_over_one_space(folder: Path) -> None:
    loaded = load(Choice(), space=MotionOnly(), folder=folder)
    fast, balanced = loaded[FAST], loaded[BALANCED]
    assert list(loaded) == [FAST, BALANCED]
    assert fast.space is balanced.space
    assert (fast.metadata.steps, balanced.metadata.steps) == (2, 6)
    assert (fast.metadata.nfe_per_window, balanced.metadata.nfe_per_window) == (2, 12)
    assert "GRID" in fast.metadata.licence and fast.metadata.licence == balanced.metadata.licence


def test_the_balanced_student_is_guided_and_batched_equals_alone(folder: Path) -> None:
    pipeline = load(Choice((BALANCED,)), space=MotionOnly(), folder=folder)[BALANCED]
    stream = SpeechStream()
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    stream.push(sound)
    window = stream.take_windows()[0]
    reference = reference_of(reference_features(np.full(52, 0.05, np.float32), None))
    # Each session has other branches with weight: one, two, and all three.
    tasks = [
        WindowTask(window, pipeline.start(1), reference, Guidance(audio, scale), 3)
        for audio, scale in ((1.0, 1.0), (4.0, 1.0), (4.0, 3.0))
    ]
    together = [latents for latents, _ in pipeline.step(tasks)]
    for task, latents in zip(tasks, together, strict=True):
        ((alone, _),) = pipeline.step([task])
        np.testing.assert_allclose(latents, alone, atol=2e-4)
    assert np.abs(together[0] - together[1]).max() > 1e-3  # the scale has its say


def test_a_scale_that_changes_between_windows_changes_the_next(folder: Path) -> None:
    pipeline = load(Choice((BALANCED,)), space=MotionOnly(), folder=folder)[BALANCED]
    stream = SpeechStream()
    stream.push(0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32))
    first, second, *_ = stream.take_windows()
    reference = reference_of(reference_features(np.full(52, 0.05, np.float32), None))
    ((_, state),) = pipeline.step(
        [WindowTask(first, pipeline.start(1), reference, Guidance(2.0, 1.0), 3)]
    )
    kept, changed = pipeline.step(
        [WindowTask(second, state, reference, Guidance(2.0, scale), 3) for scale in (1.0, 4.0)]
    )
    assert np.abs(kept[0] - changed[0]).max() > 1e-3


def test_own_weights_are_called_as_their_file_or_as_told(tmp_path: Path) -> None:
    path = write(tmp_path / "anna.safetensors", licence="by Anna's leave")
    assert names(Choice(weights=path)) == ("anna",)
    assert names(Choice(weights=path, name="mine")) == ("mine",)
    loaded = load(Choice(weights=path, name="mine"), space=MotionOnly())
    assert loaded["mine"].name == "mine"
    assert loaded["mine"].metadata.licence == "by Anna's leave"
    silent = write(tmp_path / "silent.safetensors")
    own = load(Choice(weights=silent), space=MotionOnly())["silent"]
    assert "GRID" not in own.metadata.licence


def test_how_loud_the_noise_is_stands_in_a_students_file(tmp_path: Path) -> None:
    """Of eyes, brows and head: a mouth keeps its words."""
    reference = reference_of(reference_features(np.full(52, 0.05, np.float32), None))
    window = windows_of(np.zeros(640, np.float32))[0]

    def made(**metadata: object) -> Floats:
        weights = load_weights(write(tmp_path / "own.safetensors", **metadata))
        pipeline = motion_pipeline(
            "own", weights, MotionOnly(), engine=lambda _: lambda x, t, cond: x
        )
        task = WindowTask(window, pipeline.start(1), reference, pipeline.metadata.guidance, 2)
        return pipeline.step([task])[0][0]

    plain, loud, both = made(), made(temperature=[1.2, 1.5]), made(temperature=1.5)
    expected = np.full(MOTION_DIM, 1.5)
    for at, name in enumerate(ACTIONS):
        if name.startswith(("eye", "jaw", "mouth", "cheekPuff", "tongue")):
            expected[at] = 1.2 if name.startswith("eye") else 1.0
    np.testing.assert_allclose(loud, expected * plain, rtol=1e-4, atol=1e-6)
    expected[[i for i, name in enumerate(ACTIONS) if name.startswith("eye")]] = 1.5
    np.testing.assert_allclose(both, expected * plain, rtol=1e-4, atol=1e-6)
    for wrong in ([1.2, 3.0], [1.0], "warm", None, -1):
        with pytest.raises(ValueError, match=r"temperature is .*, expected 0 to 2.0"):
            made(temperature=wrong)


def test_what_is_no_student_is_refused_by_name(tmp_path: Path) -> None:
    teacher = write(tmp_path / "teacher.safetensors", "teacher")
    noise, foreign = tmp_path / "noise.safetensors", tmp_path / "foreign.safetensors"
    noise.write_bytes(b"nothing of the kind")
    save_file({"weight": torch.zeros(3)}, foreign)
    video = tmp_path / "video.safetensors"
    save_net(video, FaceLocator(FaceLocatorConfig(1, (2, 3, 4), 4)), {})
    for path, words in {
        teacher: "holds a teacher.*fada train student",
        noise: "no safetensors file",
        foreign: "holds no motion network",
        video: "holds no motion network",
        tmp_path / "nowhere.safetensors": "no weights at",
    }.items():
        with pytest.raises(ValueError, match=words):
            load(Choice(weights=path), space=MotionOnly())
    with pytest.raises(ValueError, match="own weights are of one kind"):
        names(Choice(("motion-fast",), teacher))
    with pytest.raises(ValueError, match="is a folder: of kind motion it is a file"):
        names(Choice(weights=tmp_path))


def test_the_shipped_default_is_the_fast_one() -> None:
    assert names(Choice())[0] == load(space=MotionOnly())[FAST].name == FAST
