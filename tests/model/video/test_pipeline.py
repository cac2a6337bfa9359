"""Video students from files to latents, as they are served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import models
from model.audio.stream import windows_of
from model.models import Choice, names
from model.pipeline import StudentPipeline
from model.portrait.image import load_picture
from model.types import SAMPLE_RATE, Floats, Guidance, Reference, SessionState, Window, WindowTask
from model.video.pipeline import KeptReferences
from tests.model.video.small_students import HOP, SIDE, write_tiny, write_video


def load(kind: str, path: Path) -> StudentPipeline:
    (pipeline,) = models.load(Choice((kind,), path)).values()
    return pipeline


@pytest.fixture(scope="module", params=["video-tiny", "video"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("weights")
    if request.param == "video":
        return load("video", write_video(folder))
    return load("video-tiny", write_tiny(folder / "own.safetensors"))


@pytest.fixture(scope="module")
def reference(pipeline: StudentPipeline, examples: Path) -> Reference:
    picture = load_picture((examples / "presenter.jpg").read_bytes())
    return Reference.from_bytes(pipeline.space.encode_reference(picture).to_bytes())


def heard(pipeline: StudentPipeline, seconds: float = 1.0) -> list[Window]:
    count = round(seconds * SAMPLE_RATE)
    sound = 0.1 * np.random.default_rng(0).standard_normal(count).astype(np.float32)
    return windows_of(sound, pipeline.window_spec)


def rolled(
    pipeline: StudentPipeline, reference: Reference, seed: int, packed: bool = False
) -> Floats:
    """The latents of a second of speech; ``packed``: the state goes through bytes each time."""
    state, made = pipeline.start(seed), []
    for window in heard(pipeline):
        task = WindowTask(window, state, reference, pipeline.metadata.guidance, 2)
        ((latents, state),) = pipeline.step([task])
        made.append(latents)
        if packed:
            state = SessionState.from_bytes(state.to_bytes())
    return np.concatenate(made)


def test_a_speech_becomes_as_many_frames(pipeline: StudentPipeline, reference: Reference) -> None:
    latents = rolled(pipeline, reference, 1)
    assert latents.shape == (25, pipeline.space.dim)
    assert np.abs(np.diff(latents, axis=0)).max() > 1e-3
    assert np.abs(latents - rolled(pipeline, reference, 2)).max() > 1e-3
    np.testing.assert_array_equal(latents, rolled(pipeline, reference, 1, packed=True))
    decoder = pipeline.space.decoder(reference, 128, "portrait")
    drawn = [frame.shape for frame in decoder.decode(latents[:3])]
    assert drawn == [(128, 128, 3)] * 3


def test_batched_equals_alone(
    pipeline: StudentPipeline, reference: Reference, examples: Path
) -> None:
    picture = load_picture((examples / "monalisa.jpg").read_bytes())
    portraits = [reference, pipeline.space.encode_reference(picture)]
    window = heard(pipeline)[0]
    tasks = [
        WindowTask(window, pipeline.start(seed), portrait, Guidance(1.0 + seed, 1.0), 2)
        for seed, portrait in enumerate(portraits)
    ]
    for task, (latents, state) in zip(tasks, pipeline.step(tasks), strict=True):
        ((alone, after),) = pipeline.step([task])
        np.testing.assert_allclose(latents, alone, atol=2e-4)
        np.testing.assert_allclose(state.prefix, after.prefix, atol=2e-4)


def test_scale_and_sound_have_their_say(pipeline: StudentPipeline, reference: Reference) -> None:
    window = heard(pipeline)[0]
    silent = Window(0, np.zeros_like(window.features), window.frames)
    made = [
        pipeline.step([WindowTask(w, pipeline.start(0), reference, Guidance(s, 1.0), 2)])[0][0]
        for w, s in ((window, 1.0), (window, 4.0), (silent, 1.0))
    ]
    assert np.abs(made[0] - made[1]).max() > 1e-5
    assert np.abs(made[0] - made[2]).max() > 1e-5


def test_they_say_what_they_are(pipeline: StudentPipeline) -> None:
    known = pipeline.metadata
    assert known.steps == known.nfe_per_window == 2
    assert "training data" in known.licence
    if pipeline.space.name == "video":
        assert (pipeline.name, pipeline.window_spec.hop) == ("video", HOP)
        assert pipeline.space.dim == 4 * (SIDE // 4) ** 2
    else:
        assert (pipeline.name, pipeline.space.name) == ("own", "video-tiny")


def test_avatars_of_one_space_are_refused_in_another(
    pipeline: StudentPipeline, reference: Reference
) -> None:
    other = Reference.from_bytes(reference.to_bytes())
    object.__setattr__(other, "latent_space", "motion")
    task = WindowTask(heard(pipeline)[0], pipeline.start(0), other, Guidance(1, 1), 2)
    with pytest.raises(ValueError, match="prepared for the 'motion' latent space"):
        pipeline.step([task])


def test_a_balanced_one_takes_two_evaluations_a_step(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "b.safetensors", guided=False, licence="ours")
    known = load("video-tiny", path).metadata
    assert (known.steps, known.nfe_per_window, known.licence) == (2, 4, "ours")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_video(tmp_path)
    for name in ("tiny.pt", "vae.safetensors", "student.safetensors"):
        (folder / name).rename(folder / f"{name}.away")
    with pytest.raises(ValueError, match="lacks student.safetensors; vae.safetensors or sd-vae.*; "
                                         "tiny.pt.*cannot be streamed"):  # fmt: skip
        load("video", folder)
    with pytest.raises(ValueError, match="is not a folder"):
        load("video", folder / "tiny.pt.away")
    with pytest.raises(ValueError, match="--weights DIR"):
        names(Choice(("video",)))
    with pytest.raises(ValueError, match="video-tiny has no weights here yet: .*is missing"):
        names(Choice(("video-tiny",)), tmp_path)


def test_who_is_no_student_is_refused(tmp_path: Path) -> None:
    teacher = write_tiny(tmp_path / "teacher.safetensors", guided=False, role="teacher")
    with pytest.raises(ValueError, match="holds a teacher.*fada train video-student"):
        load("video-tiny", teacher)
    with pytest.raises(ValueError, match="holds no motion network"):
        load("motion", teacher)
    noise = tmp_path / "noise.pth"
    noise.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="noise.pth is no safetensors file"):
        load("video-tiny", noise)
    with pytest.raises(ValueError, match="is a folder: of kind video-tiny it is a file"):
        load("video-tiny", tmp_path)
    plain = write_video(tmp_path, prefix=0)
    with pytest.raises(ValueError, match="has prefix_frames = 0, expected at least 1"):
        load("video", plain)
    with pytest.raises(ValueError, match="holds a DenoisingUNet, expected a TinyNet"):
        load("video-tiny", plain / "student.safetensors")


def test_a_portrait_is_looked_at_once() -> None:
    seen: list[str] = []

    def encode(reference: Reference) -> dict[str, torch.Tensor]:
        seen.append(reference.latent_space)
        return {"face": torch.from_numpy(reference.features)[None]}

    def portrait(name: str, value: float) -> Reference:
        features = np.full(2, value, np.float32)
        return Reference(name, 1, 1, (0, 0, 1, 1), 1.0, features, {"face": np.zeros(5, np.int32)})

    kept = KeptReferences(encode, 2)
    a, b, c = portrait("a", 1.0), portrait("b", 2.0), portrait("c", 3.0)
    assert kept([a, b, a])["face"].tolist() == [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    kept([c])
    kept([c, a])
    assert seen == ["a", "b", "c"]  # b went
    kept([b])
    assert seen == ["a", "b", "c", "b"]
