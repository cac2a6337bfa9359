"""How the service uses a pipeline: loaded by its settings, with its defaults and error codes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from model.portrait.face_tracker import NoFaceError
from model.portrait.image import LoadedPicture
from model.portrait.occlusion import OccludedError
from model.types import DEFAULT_SIZE, FPS, Behaviour, Colour, Guidance, Reference
from server.api.protocol import AnimationOptions, FaceState, ModelView
from server.errors import ServiceError, SetupError
from server.settings import Settings

if TYPE_CHECKING:
    from engines.student_engines import StudentEngines
    from model.models import Choice
    from model.pipeline import AvatarPipeline


def model_names(settings: Settings) -> tuple[str, ...]:
    """The models that `load_pipelines` would load, the default first; loads nothing.

    Raises `SetupError` for models that are not available.
    """
    if settings.pipeline is not None:
        return settings.models
    from model import models

    try:
        return models.names(model_choice(settings))
    except ValueError as error:
        raise SetupError(str(error)) from error


def student_engines(settings: Settings) -> StudentEngines | None:
    """What gives the students of ``settings`` their engines; None where a loader of your own has
    its own."""
    if settings.pipeline is not None:
        return None
    from engines.student_engines import StudentEngines

    return StudentEngines()


def load_pipelines(
    settings: Settings, only: Sequence[str] | None = None, engines: StudentEngines | None = None
) -> dict[str, AvatarPipeline]:
    """What ``settings`` choose, by name, the default first; with ``only``, just those.

    ``engines`` gives the networks' forwards, by default the best here. Raises `SetupError` for
    weights that cannot be served, and what a custom loader raises.
    """
    names = model_names(settings) if only is None else tuple(only)
    if settings.pipeline is not None:
        module, _, function = settings.pipeline.partition(":")
        load = getattr(importlib.import_module(module), function)
        return {name: load(name) for name in names}
    from model import models

    choice = model_choice(settings)
    if choice.weights is None:
        choice = replace(choice, models=names)
    made = engines or student_engines(settings)
    assert made is not None
    try:
        return {
            **models.load(
                choice,
                motion_engine=made.motion,
                stored_engine=None if settings.engines_build == "only" else made.stored,
                video_engine=made.video,
            )
        }
    except ValueError as error:
        raise SetupError(str(error)) from error


def model_choice(settings: Settings) -> Choice:
    """The models that ``settings`` name, in the model's own words."""
    from model.models import Choice

    return Choice(settings.models, settings.weights, settings.model_name)


def model_view(pipeline: AvatarPipeline) -> ModelView:
    """A loaded model as `GET /models` describes it."""
    metadata = pipeline.metadata
    return ModelView(
        name=pipeline.name,
        latent_space=pipeline.space.name,
        steps=metadata.steps,
        nfe_per_window=metadata.nfe_per_window,
        fps=FPS,
        size=DEFAULT_SIZE,
        licence=metadata.licence,
        audio_cfg=metadata.guidance.audio,
        reference_cfg=metadata.guidance.reference,
    )


def encode_portrait(pipeline: AvatarPipeline, picture: LoadedPicture) -> Reference:
    """A picture to the pipeline's reference, in pixels of the upload; blocks for 0.1 s.

    One call at a time, as the trackers are shared. Raises `ServiceError` ``no_face`` or
    ``occluded``.
    """
    try:
        reference = pipeline.space.encode_reference(picture.pixels)
    except OccludedError as error:
        raise ServiceError("occluded", str(error)) from error
    except NoFaceError as error:
        raise ServiceError("no_face", str(error)) from error
    size = picture.width, picture.height
    if (reference.height, reference.width) != picture.pixels.shape[:2]:  # turned by a quarter
        size = size[::-1]
    scale = size[0] / reference.width
    x0, y0, x1, y1 = (scale * side for side in reference.face_box)
    return replace(reference, width=size[0], height=size[1], face_box=(x0, y0, x1, y1))


def check_reference(pipeline: AvatarPipeline, reference: Reference) -> None:
    """Raises `ServiceError` ``invalid_option`` for an avatar of another latent space."""
    try:
        reference.expect(pipeline.space.name)
    except ValueError as error:
        raise ServiceError("invalid_option", f"model {pipeline.name!r}: {error}") from error


def sampling_options(pipeline: AvatarPipeline, options: AnimationOptions) -> tuple[Guidance, int]:
    """Guidance and steps; the model's own where ``options`` leaves them open."""
    default = pipeline.metadata.guidance
    guidance = Guidance(
        audio=default.audio if options.audio_cfg is None else options.audio_cfg,
        reference=default.reference if options.reference_cfg is None else options.reference_cfg,
    )
    return guidance, pipeline.metadata.steps if options.steps is None else options.steps


def backdrop(pipeline: AvatarPipeline, options: AnimationOptions) -> Colour | None:
    """What stands behind the person; None: the picture's own background.

    Raises `ServiceError` ``invalid_option`` for a model that cannot replace it.
    """
    if options.background is None:
        return None
    if not pipeline.space.parts_background:
        raise ServiceError(
            "invalid_option",
            f"background = {options.background!r}, expected none with model {pipeline.name!r}, "
            "which draws the picture whole",
        )
    red, green, blue = bytes.fromhex(options.background[1:])
    return red, green, blue


def behaviour(options: AnimationOptions, state: FaceState) -> Behaviour:
    """How the face acts beside its speech."""
    return Behaviour(
        head_motion=options.head_motion,
        expressiveness=options.expressiveness,
        gaze=options.gaze,
        blink_rate=options.blink_rate,
        emotion=options.emotion,
        emotion_strength=options.emotion_strength,
        state=state,
    )
