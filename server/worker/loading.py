"""From a setting to loaded pipelines. Knows how a loader is named; not what it loads."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from model.pipeline import AvatarPipeline, StudentInfo
from server.protocol import ModelView


def load_pipelines(loader: str, names: Sequence[str]) -> dict[str, AvatarPipeline]:
    """Call ``module:function`` once a name; raises what the import or the loader raises."""
    module, _, function = loader.partition(":")
    load = getattr(importlib.import_module(module), function)
    return {name: load(name) for name in names}


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
