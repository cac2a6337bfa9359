"""Which engine runs which student here: the worker's way to a loaded pipeline.

Knows: the machine's choice (today: OpenVINO, on the CPU). Does not know sessions or servers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.base import as_forward
from engines.vino import VinoEngine
from model import students
from model.audio.features import ROW_DIM
from model.audio.windows import HOP, LOOKAHEAD, PREFIX
from model.diffusion.denoiser import Forward
from model.motion.actions import MOTION_DIM, REFERENCE_DIM
from model.motion.net import MotionNet
from model.pipeline import StudentPipeline


def load_pipelines(choice: students.Choice) -> dict[str, StudentPipeline]:
    """All of ``choice`` on this machine's engine, see `students.load_pipelines`."""
    return students.load_pipelines(choice, engine=_compiled)


def load_pipeline(name: str = students.DEFAULT) -> StudentPipeline:
    """The student called ``name`` on this machine's engine. Raises ``ValueError`` if unknown."""
    return load_pipelines(students.Choice((name,)))[name]


def _compiled(net: MotionNet) -> Forward:
    return as_forward(VinoEngine(net, motion_example(2, net.config.guided)))


def motion_example(batch: int, guided: bool) -> dict[str, Tensor]:
    """Random inputs of the motion network's shapes, always the same."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=random)

    example = {
        "x_t": normal(HOP, MOTION_DIM),
        "t": torch.linspace(0.2, 0.8, batch),
        "prefix": normal(PREFIX, MOTION_DIM),
        "audio": normal(PREFIX + HOP + LOOKAHEAD, ROW_DIM),
        "reference": normal(REFERENCE_DIM),
        "has_audio": torch.ones(batch),
        "has_reference": torch.ones(batch),
    }
    if guided:
        example["guidance"] = torch.tensor([[2.0, 1.0]]).repeat(batch, 1)
    return example
