"""The students that ship: names, weights files, and how one becomes a pipeline.

Knows: which latent space a name belongs to. Does not know: sessions or servers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from model.conditioning import FPS, Guidance
from model.diffusion.denoiser import Denoiser, Forward, X0Denoiser
from model.diffusion.guidance import CFGTokenDenoiser, MultiCFGDenoiser
from model.diffusion.schedule import CosineSchedule
from model.motion.net import MotionNet
from model.motion.steady import steadied
from model.motion.weights import Limits, MotionWeights, load_weights
from model.pipeline import LatentSpace, StudentInfo, StudentPipeline

WEIGHTS = Path(__file__).parent / "weights"
MOTION_STUDENTS = ("motion-fast",)
LICENCE = "Apache-2.0; learned from the GRID corpus (CC BY 4.0)"


def load_pipeline(
    name: str = "motion-fast",
    space: LatentSpace | None = None,
    engine: Callable[[MotionNet], Forward] | None = None,
    threads: int = 1,
) -> StudentPipeline:
    """The student called ``name``, ready to step.

    ``space``: draws the latents; the portrait renderer's unless another is given. ``engine`` wraps
    the network (compiled, on another device); plain torch without one. ``threads`` is torch's, for
    the whole process: more than one pays only when the cores are idle.
    Raises ``ValueError`` for an unknown name.
    """
    if name not in MOTION_STUDENTS:
        raise ValueError(f"no student is called {name!r}, there are: {', '.join(MOTION_STUDENTS)}")
    if space is None:
        from model.motion.space import MotionSpace  # draws with numba and OpenCV: seconds to load

        space = MotionSpace()
    torch.set_num_threads(threads)
    return motion_pipeline(name, load_weights(WEIGHTS / f"{name}.safetensors"), space, engine)


def motion_pipeline(
    name: str,
    weights: MotionWeights,
    space: LatentSpace,
    engine: Callable[[MotionNet], Forward] | None = None,
) -> StudentPipeline:
    """A pipeline around ``weights``; `load_pipeline` for the ones that ship.

    A network that takes the guidance scales as tokens costs one evaluation a step, any other
    three, one for each branch.
    """
    steps = cast(int, weights.facts["steps"])
    audio, reference = cast("list[float]", weights.facts["guidance"])
    forward = X0Denoiser(weights.net if engine is None else engine(weights.net))
    guided = weights.net.config.guided
    info = StudentInfo(
        name=name,
        latent_space=space.name,
        steps=steps,
        nfe_per_window=steps if guided else 3 * steps,
        fps=FPS,
        size=512,
        licence=LICENCE,
        guidance=Guidance(audio, reference),
    )
    denoiser: Denoiser = MultiCFGDenoiser(forward)
    if guided:
        denoiser = CFGTokenDenoiser(forward, cast(Limits, weights.facts["limits"]))
    schedule = CosineSchedule()
    return StudentPipeline(info, space, denoiser, schedule, weights.mean, weights.std, steadied)
