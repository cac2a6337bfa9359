"""The models that can be served, by name and kind, and `load`, which makes pipelines of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.audio.frontend import AudioWindowSpec
from model.audio.log_mel import LOG_MEL, PREFIX
from model.diffusion.arrays import like
from model.diffusion.cached_context import CachedContext
from model.diffusion.denoiser import Conditions, Forward, X0Denoiser
from model.diffusion.guidance import guided
from model.diffusion.schedule import CosineSchedule
from model.manifest import WEIGHTS as WEIGHTS
from model.motion.nonverbal import perform
from model.motion.smoothing import smooth
from model.motion.student import MotionStudent, read_student
from model.pipeline import LatentSpace, Student, StudentPipeline, refuse_teacher
from model.portrait.blendshapes import EYES, MOTION_DIM, MOUTH
from model.types import Floats, ModelMetadata, Reference

if TYPE_CHECKING:
    from torch import nn

    from model.motion.checkpoint import MotionWeights

DEFAULT = "motion-fast"
MOTION, VIDEO_TINY, VIDEO = "motion", "video-tiny", "video"
# Models whose weights ship; those of the real size are too large.
SHIPPED = {
    MOTION: (DEFAULT, "motion-balanced"),
    VIDEO_TINY: ("video-tiny", "video-tiny-balanced"),
    VIDEO: (),
}
LICENCE = "Apache-2.0; learned from the GRID corpus (CC BY 4.0)"

MotionEngine = Callable[["MotionWeights"], Forward]
# A student's file -> its forward in numpy's arrays, where one was prepared before
StoredEngine = Callable[[Path], Forward | None]
# (network, its audio windows, shape of its latent) -> its forward
VideoEngine = Callable[["nn.Module", AudioWindowSpec, tuple[int, ...]], Forward]


@dataclass(frozen=True)
class Choice:
    """The models to load: names, or a kind of `SHIPPED` for all of its models.

    ``weights`` is a model of your own, of the one kind in ``models``: a file, or a folder for
    `VIDEO`. It is called ``name``, by default its file's name.
    """

    models: tuple[str, ...] = (MOTION,)
    weights: Path | None = None
    name: str | None = None


SHIPPED_MOTION = Choice()


def names(choice: Choice, folder: Path = WEIGHTS) -> tuple[str, ...]:
    """The names of the chosen models, the default first; loads nothing.

    ``folder`` holds the shipped weights. Raises ``ValueError`` for an unknown name or missing
    weights.
    """
    if choice.weights is None:
        found = [name for model in choice.models for name in _expanded(model, folder)]
        return tuple(dict.fromkeys(found))
    if len(choice.models) != 1 or choice.models[0] not in SHIPPED:
        raise ValueError(
            f"own weights are of one kind, {', '.join(SHIPPED)}; got {', '.join(choice.models)}"
        )
    (kind,) = choice.models
    if kind != VIDEO and choice.weights.is_dir():
        raise ValueError(
            f"{choice.weights} is a folder: of kind {kind} it is a file, of kind video "
            "a folder (--model video)"
        )
    return (choice.name or (VIDEO if kind == VIDEO else choice.weights.stem),)


def _expanded(model: str, folder: Path) -> tuple[str, ...]:
    if model == VIDEO:
        raise ValueError(
            f"{VIDEO} needs the folder with EchoMimic's files and a student's: "
            "--weights DIR, docs/guide/video.md"
        )
    every = SHIPPED.get(model, (model,))
    if every == (model,) and not any(model in some for some in SHIPPED.values()):
        known = dict.fromkeys([*SHIPPED, *(name for some in SHIPPED.values() for name in some)])
        raise ValueError(f"model = {model!r}, expected one of {', '.join(known)}")
    there = tuple(name for name in every if _file(name, folder).is_file())
    if not there:
        missing = ", ".join(str(_file(name, folder)) for name in every)
        raise ValueError(
            f"{model} has no weights here yet: {missing} is missing; "
            "a checkout or the wheel fada-weights-extra has what ships"
        )
    return there


def _kind(name: str) -> str:
    return next(kind for kind, some in SHIPPED.items() if name in some)


def _file(name: str, folder: Path) -> Path:
    return folder / f"{name}.safetensors"


def load(
    choice: Choice = SHIPPED_MOTION,
    *,
    motion_engine: MotionEngine | None = None,
    stored_engine: StoredEngine | None = None,
    video_engine: VideoEngine | None = None,
    space: LatentSpace | None = None,
    folder: Path = WEIGHTS,
    threads: int = 1,
) -> dict[str, StudentPipeline]:
    """All models of ``choice``, ready to step, by name, the default first.

    Args:
        motion_engine, video_engine: prepare a network's forward (compiled, on another device);
            plain torch by default.
        stored_engine: asked first; a motion model that has one is loaded without torch.
        space: for all motion models, which then give the network's motion alone; by default the
            portrait renderer's.
        folder: holds the shipped weights.
        threads: torch's, for the whole process; more than one pays only on idle cores.

    Raises ``ValueError`` as `names` does, and for a file that holds no student.
    """
    known = names(choice, folder)
    if choice.weights is not None:
        (name,), (kind,), licence = known, choice.models, None
        paths = {name: (kind, choice.weights)}
    else:
        licence = LICENCE
        paths = {name: (_kind(name), _file(name, folder)) for name in known}
    # Files are checked before a space is made, which takes seconds.
    motion = {n: _student(path) for n, (kind, path) in paths.items() if kind == MOTION}
    drawn = space is None
    if motion and space is None:
        from model.motion.space import MotionSpace  # imports numba and OpenCV

        space = MotionSpace()
    loaded = {}
    for name, (kind, path) in paths.items():
        forward = stored_engine(path) if kind == MOTION and stored_engine is not None else None
        if forward is None:
            _set_torch_threads(threads)
        if kind != MOTION or space is None:
            loaded[name] = _video_pipeline(name, kind, path, licence=licence, engine=video_engine)
        elif forward is None:
            loaded[name] = motion_pipeline(
                name,
                motion_student(path),
                space,
                engine=motion_engine,
                licence=licence,
                nonverbal=drawn,
            )
        else:
            loaded[name] = _pipeline(
                name, motion[name], space, forward=forward, licence=licence, nonverbal=drawn
            )
    return loaded


def _set_torch_threads(threads: int) -> None:
    import torch  # takes seconds

    torch.set_num_threads(threads)


def _video_pipeline(
    name: str, kind: str, path: Path, *, licence: str | None, engine: VideoEngine | None
) -> StudentPipeline:
    from model.video import pipeline  # slow to import

    if kind == VIDEO:
        return pipeline.video_pipeline(name, path, engine=engine)
    return pipeline.tiny_pipeline(name, path, engine, licence=licence)


def motion_student(path: Path) -> MotionWeights:
    """A motion student from its file.

    Raises ``ValueError`` for a teacher, or a file that holds no motion network.
    """
    from model.motion.checkpoint import load_weights  # torch

    _student(path)
    return load_weights(path)


def _student(path: Path) -> MotionStudent:
    student = read_student(path)
    refuse_teacher(student.metadata, str(path), command="fada train student --teacher")
    return student


def motion_pipeline(
    name: str,
    weights: MotionWeights,
    space: LatentSpace,
    *,
    engine: MotionEngine | None = None,
    licence: str | None = None,
    nonverbal: bool = False,
) -> StudentPipeline:
    """A pipeline around ``weights``; `load` for the served ones.

    ``licence`` overrides the file's. ``nonverbal`` adds `model.motion.nonverbal` to the network's
    motion, as in service.
    """
    forward = CachedContext(weights.net) if engine is None else engine(weights)
    return _pipeline(
        name, weights.student, space, forward=forward, licence=licence, nonverbal=nonverbal
    )


def _pipeline(
    name: str,
    motion: MotionStudent,
    space: LatentSpace,
    *,
    forward: Forward,
    licence: str | None,
    nonverbal: bool,
) -> StudentPipeline:
    metadata = ModelMetadata.parse(motion.metadata, guided=motion.guided, licence=licence)

    def conditions(references: Sequence[Reference]) -> Conditions:
        """``reference`` (B, 64), see `reference_features`."""
        return {"reference": like(np.stack([r.features for r in references]), motion.mean)}

    student = Student(
        denoiser=guided(X0Denoiser(forward), metadata.limits),
        schedule=CosineSchedule(),
        window_spec=LOG_MEL,
        prefix=PREFIX,
        mean=motion.mean,
        std=motion.std,
        conditions=conditions,
        postprocess=smooth,
        perform=perform if nonverbal else None,
        temperature=like(temperature_of(*metadata.temperature), motion.mean),
    )
    return StudentPipeline(name, metadata, space=space, student=student)


def temperature_of(eyes: float, head: float) -> Floats:
    """(58,) factors on a motion frame's noise, see `ModelMetadata`; 1 for the mouth, which audio
    determines."""
    every = np.full(MOTION_DIM, head, np.float32)
    every[np.flatnonzero(EYES)] = eyes
    every[np.flatnonzero(MOUTH)] = 1.0
    return every
