"""The avatar pipeline: windows of speech in, frames and the next states out.

Knows: a latent space, a sampler and one student, behind their contracts. Does not know which
latent space it is, nor anything of media containers, sockets or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio.features import ROW_DIM
from model.audio.windows import HOP, PREFIX, WINDOW_FRAMES
from model.conditioning import Floats, Guidance, Reference, SessionState, Window
from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import NoiseSchedule

Frame = NDArray[np.uint8]  # (H, W, 3) RGB
# (B, PREFIX, D) latents before, (B, HOP, D) sampled -> (B, HOP, D), physical units
Finish = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class StudentInfo:
    """What `GET /models` says of a loaded student."""

    name: str
    latent_space: str
    steps: int
    nfe_per_window: int
    fps: int
    size: int
    licence: str
    guidance: Guidance


class FrameDecoder(Protocol):
    """Draws one reference at one size; holds everything that is prepared once for that."""

    width: int
    height: int

    def decode(self, latents: Floats) -> Iterator[Frame]:
        """``latents`` (T, D) -> T frames. A yielded frame is valid until the next is asked for."""
        ...


class LatentSpace(Protocol):
    """What a frame's latent means: how a portrait becomes a reference and latents frames."""

    name: str
    dim: int

    def encode_reference(self, picture: Frame) -> Reference:
        """Raises `model.portrait.NoFaceError` when there is no face in ``picture``."""
        ...

    def rest_prefix(self, frames: int) -> Floats:
        """(frames, D) latents of a face at rest: the prefix of a session's first window."""
        ...

    def decoder(self, reference: Reference, size: int, framing: str) -> FrameDecoder:
        """``size``: long side in pixels, even; ``framing``: ``portrait`` or ``full``."""
        ...


@dataclass(frozen=True)
class WindowTask:
    """One session's turn in a batch."""

    window: Window
    state: SessionState
    reference: Reference
    guidance: Guidance
    steps: int


class AvatarPipeline(Protocol):
    """One loaded student with its latent space."""

    info: StudentInfo
    space: LatentSpace

    def start(self, seed: int) -> SessionState:
        """The state before a session's first window."""
        ...

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        """Latents (window.frames, D) and next state of each task, in order, run as one batch.

        Batched equals alone within numeric tolerance: noise is seeded by (session seed, window
        index), never by the place in the batch. Draw with `FrameDecoder.decode`.
        """
        ...


STEPS_RANGE = (1, 50)


def window_noise(seed: int, window_index: int, dim: int) -> Floats:
    """(HOP, dim) standard normal noise that depends on nothing but its session and window.

    A counter-based generator (Philox: Salmon et al. 2011) keyed by the two numbers: no stream to
    carry along, so a replayed window gets the same noise in any batch and any process.
    """
    bits = np.random.Philox(key=np.array([seed, window_index], np.uint64))
    return np.random.Generator(bits).standard_normal((HOP, dim), np.float32)


class StudentPipeline:
    """An `AvatarPipeline` around one few-step student.

    ``mean`` and ``std`` (D,) take latents between physical units, in which they are handed out and
    kept in `SessionState.prefix`, and the network's. ``finish``, if given, has the last word on
    every window's latents.
    """

    def __init__(
        self,
        info: StudentInfo,
        space: LatentSpace,
        denoiser: Denoiser,
        schedule: NoiseSchedule,
        mean: Tensor,
        std: Tensor,
        finish: Finish | None = None,
    ) -> None:
        if mean.shape != (space.dim,) or std.shape != (space.dim,):
            raise ValueError(f"mean has shape {tuple(mean.shape)}, expected ({space.dim},)")
        self.info, self.space = info, space
        self._denoiser, self._schedule = denoiser, schedule
        self._mean, self._std, self._finish = mean, std, finish

    def start(self, seed: int) -> SessionState:
        """The state before a session's first window: the face has been at rest until now."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed = {seed}, expected 0 to 2^63 - 1")
        return SessionState(seed, self.space.rest_prefix(PREFIX))

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        """See `AvatarPipeline.step`: one sampler call for each distinct number of steps.

        Raises ``ValueError`` when a task is of the wrong shape or its window is not the session's
        next one, before anything is computed.
        """
        for task in tasks:
            self._check(task)
        results: dict[int, tuple[Floats, SessionState]] = {}
        for steps in {task.steps for task in tasks}:
            chosen = [i for i, task in enumerate(tasks) if task.steps == steps]
            batch = self._sample([tasks[i] for i in chosen], steps)
            for i, latents in zip(chosen, batch, strict=True):
                frames = tasks[i].window.frames
                results[i] = latents[:frames], tasks[i].state.after(latents, frames)
        return [results[i] for i in range(len(tasks))]

    def _sample(self, tasks: list[WindowTask], steps: int) -> Floats:
        """(B, HOP, D) latents in physical units."""
        noise = torch.from_numpy(
            np.stack(
                [window_noise(k.state.seed, k.state.window_index, self.space.dim) for k in tasks]
            )
        )
        with torch.inference_mode():
            latents = sample(
                self._denoiser,
                noise.to(self._mean),
                uniform_timesteps(steps),
                self._conditions(tasks),
                self._schedule,
            )
            made = np.asarray((latents * self._std + self._mean).cpu().numpy(), np.float32)
        if self._finish is None:
            return made
        return self._finish(np.stack([task.state.prefix for task in tasks]), made)

    def _conditions(self, tasks: list[WindowTask]) -> Conditions:
        prefix = torch.from_numpy(np.stack([k.state.prefix for k in tasks])).to(self._mean)
        guidance = [[k.guidance.audio, k.guidance.reference] for k in tasks]
        return {
            "prefix": (prefix - self._mean) / self._std,
            "audio": torch.from_numpy(np.stack([k.window.features for k in tasks])).to(prefix),
            "reference": torch.from_numpy(np.stack([k.reference.features for k in tasks])).to(
                prefix
            ),
            "guidance": torch.tensor(guidance).to(prefix),
        }

    def _check(self, task: WindowTask) -> None:
        low, high = STEPS_RANGE
        if not low <= task.steps <= high:
            raise ValueError(f"steps = {task.steps}, expected {low} to {high}")
        if task.window.features.shape != (WINDOW_FRAMES, ROW_DIM):
            raise ValueError(
                f"a window's features have shape {task.window.features.shape}, "
                f"expected ({WINDOW_FRAMES}, {ROW_DIM})"
            )
        if not 1 <= task.window.frames <= HOP:
            raise ValueError(f"a window has {task.window.frames} frames, expected 1 to {HOP}")
        if task.state.prefix.shape != (PREFIX, self.space.dim):
            raise ValueError(
                f"a state's prefix has shape {task.state.prefix.shape}, "
                f"expected ({PREFIX}, {self.space.dim})"
            )
        if task.window.index != task.state.window_index:
            raise ValueError(
                f"window {task.window.index} came where window {task.state.window_index} is next"
            )
        if task.reference.latent_space != self.space.name:
            raise ValueError(
                f"the reference is of latent space {task.reference.latent_space!r}, "
                f"expected {self.space.name!r}"
            )
