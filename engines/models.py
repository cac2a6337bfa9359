"""Which engine runs which student here: the worker's way to a loaded pipeline."""

from __future__ import annotations

import os

from torch import Tensor, nn

from engines.artifacts import default_folder
from engines.base import Engine, as_forward
from engines.example_inputs import motion_inputs
from engines.motion_error import LARGEST, motion_error
from engines.select import best
from engines.video import video_inputs
from model import models
from model.audio.frontend import AudioWindowSpec
from model.diffusion.denoiser import Forward
from model.motion.checkpoint import MotionWeights
from model.pipeline import StudentPipeline

MOST_THREADS = 4  # of a video network that a CPU runs; more were not tried


def load_pipelines(choice: models.Choice) -> dict[str, StudentPipeline]:
    """All of ``choice`` on this machine's engine, see `models.load_pipelines`."""
    return models.load_pipelines(choice, engine=fastest, video_engine=_fastest_video)


def load_pipeline(name: str = models.DEFAULT) -> StudentPipeline:
    """The student called ``name`` on this machine's engine. Raises ``ValueError`` if unknown."""
    return load_pipelines(models.Choice((name,)))[name]


def fastest(weights: MotionWeights) -> Forward:
    """The fastest engine that moves a face as the network does, see `motion_error`."""

    def inputs(rows: int) -> dict[str, Tensor]:
        return motion_inputs(rows, weights.net.config.guided)

    def judge(engine: Engine) -> str | None:
        error = motion_error(weights, as_forward(engine))
        if error < LARGEST:
            return None
        return f"motion is off by {error:.1%} of its spread, at most {LARGEST:.0%} is accepted"

    return as_forward(best(weights.net, inputs, default_folder(), judge=judge))


def _fastest_video(
    net: nn.Module, window_spec: AudioWindowSpec, latent: tuple[int, ...]
) -> Forward:
    """On several cores: of a video the network draws nearly all itself, so the others idle."""
    inputs = video_inputs(net, window_spec, latent)
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    return as_forward(best(net, inputs, default_folder(), threads))
