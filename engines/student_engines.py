"""The engines of a worker's students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.diffusion.denoiser import Forward

if TYPE_CHECKING:
    from torch import nn

    from engines.select import StudentNet
    from model.audio.frontend import AudioWindowSpec
    from model.diffusion.cached_context import CachedContext
    from model.motion.checkpoint import MotionWeights


class StudentEngines:
    """`models.load` asks it for engines; `take` gives them with their networks, in order.

    ``make``: the forward of a network; by default the best engine that is stored here, which
    motion students take from an earlier start without torch.
    """

    def __init__(self, make: Callable[[StudentNet], CachedContext[Any]] | None = None) -> None:
        self._make = make
        self._made: list[tuple[StudentNet | None, CachedContext[Any]]] = []

    def take(self) -> list[tuple[StudentNet | None, CachedContext[Any]]]:
        """The networks and their engines, which are forgotten here; None: it was not loaded."""
        made, self._made = self._made, []
        return made

    def stored(self, weights: Path) -> Forward | None:
        """The engine of a motion student's file, if an earlier start chose one."""
        if self._make is not None:
            return None
        from engines import artifacts, stored  # OpenVINO

        forward = stored.load(weights, artifacts.default_folder())
        if forward is not None:
            self._made.append((None, forward))
        return forward

    def motion(self, weights: MotionWeights) -> Forward:
        from engines import artifacts, stored
        from engines.select import motion_net

        student = motion_net(weights)
        forward = self.engine(student)
        if self._make is None and weights.file is not None:
            stored.keep(weights.file, artifacts.default_folder(), forward, student.inputs(2))
        return forward

    def video(
        self, net: nn.Module, window_spec: AudioWindowSpec, latent: tuple[int, ...]
    ) -> Forward:
        from engines.select import video_net

        return self.engine(video_net(net, window_spec, latent))

    def engine(self, student: StudentNet) -> CachedContext[Any]:
        from engines.select import student_engine  # torch

        forward = (self._make or student_engine)(student)
        self._made.append((student, forward))
        return forward
