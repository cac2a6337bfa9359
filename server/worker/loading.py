"""From settings to loaded pipelines."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from model.pipeline import AvatarPipeline, StudentInfo
from server.api.protocol import ModelView
from server.errors import SetupError
from server.settings import Settings

if TYPE_CHECKING:
    from model.models import Choice


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
    from engines import models  # compilers: seconds to import

    choice = _choice(settings)
    if choice.weights is None:
        choice = replace(choice, models=names)
    try:
        return {**models.load_pipelines(choice)}
    except ValueError as error:
        raise SetupError(str(error)) from error


def _choice(settings: Settings) -> Choice:
    from model.models import Choice

    return Choice(settings.models, settings.weights, settings.model_name)


def view(info: StudentInfo) -> ModelView:
    """What `GET /models` says of a student."""
    return ModelView(
        name=info.name,
        latent_space=info.latent_space,
        steps=info.steps,
        nfe_per_window=info.nfe_per_window,
        fps=info.fps,
        size=info.size,
        licence=info.licence,
        audio_cfg=info.guidance.audio,
        reference_cfg=info.guidance.reference,
    )
