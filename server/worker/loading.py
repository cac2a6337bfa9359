"""From settings to loaded pipelines."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from model.types import DEFAULT_SIZE, FPS
from server.api.protocol import ModelView
from server.errors import SetupError
from server.settings import Settings

if TYPE_CHECKING:
    from model.models import Choice
    from model.pipeline import AvatarPipeline


def model_names(settings: Settings) -> tuple[str, ...]:
    """The names that `load_pipelines` would load, the default first; loads nothing.

    Raises `SetupError` for students that are not to be had.
    """
    if settings.pipeline is not None:
        return settings.models
    from model import models  # torch, which a loader of one's own may do without

    try:
        return models.names(_choice(settings))
    except ValueError as error:
        raise SetupError(str(error)) from error


def load_pipelines(
    settings: Settings, only: Sequence[str] | None = None
) -> dict[str, AvatarPipeline]:
    """What ``settings`` choose, by name, the default first; of it just ``only``, if that is given.

    Raises `SetupError` for weights that cannot be served, and what a loader of one's own raises.
    """
    names = model_names(settings) if only is None else tuple(only)
    if settings.pipeline is not None:
        module, _, function = settings.pipeline.partition(":")
        load = getattr(importlib.import_module(module), function)
        return {name: load(name) for name in names}
    # Compilers take seconds to import.
    from engines.select import motion_engine, video_engine
    from model import models

    choice = _choice(settings)
    if choice.weights is None:
        choice = replace(choice, models=names)
    try:
        return {**models.load_pipelines(choice, engine=motion_engine, video_engine=video_engine)}
    except ValueError as error:
        raise SetupError(str(error)) from error


def _choice(settings: Settings) -> Choice:
    from model.models import Choice

    return Choice(settings.models, settings.weights, settings.model_name)


def view(pipeline: AvatarPipeline) -> ModelView:
    """What `GET /models` says of a loaded model."""
    known = pipeline.metadata
    return ModelView(
        name=pipeline.name,
        latent_space=pipeline.space.name,
        steps=known.steps,
        nfe_per_window=known.nfe_per_window,
        fps=FPS,
        size=DEFAULT_SIZE,
        licence=known.licence,
        audio_cfg=known.guidance.audio,
        reference_cfg=known.guidance.reference,
    )
