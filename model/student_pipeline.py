"""The avatar pipeline around one few-step student: its sampler, noise and units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.audio.frontend import AudioWindowSpec
from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import NoiseSchedule
from model.pipeline import LatentSpace, StudentInfo, WindowTask
from model.types import Floats, Reference, SessionState

# (B, P, D) latents before, (B, hop, D) sampled -> (B, hop, D), physical units
Finish = Callable[[Floats, Floats], Floats]
STEPS_RANGE = (1, 50)


def window_noise(seed: int, window_index: int, frames: int, dim: int) -> Floats:
    """(frames, dim) standard normal noise that depends on nothing but its session and window.

    A counter-based generator (Philox: Salmon et al. 2011) keyed by the two numbers: no stream to
    carry along, so a replayed window gets the same noise in any batch and any process.
    """
    bits = np.random.Philox(key=np.array([seed, window_index], np.uint64))
    return np.random.Generator(bits).standard_normal((frames, dim), np.float32)


@dataclass(frozen=True)
class Student:
    """One few-step denoiser, and what its inputs and outputs are.

    ``mean`` and ``std`` have the shape of a frame's latent as the network knows it, on the
    network's device; they take latents between physical units, in which they are handed out and
    kept, and the network's. ``prefix`` clean latents before a window are told to it. ``told``
    makes of a batch's references the conditions that they are to it. ``finish``, if given, has
    the last word on every window's latents. ``temperature``, one number or one for each of a
    frame's latent, scales the noise that sampling starts from: few steps spread less from seed to
    seed than many, and above 1 that is made up for.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    window_spec: AudioWindowSpec
    prefix: int
    mean: Tensor
    std: Tensor
    told: Callable[[Sequence[Reference]], Conditions]
    finish: Finish | None = None
    temperature: float | Tensor = 1.0


class StudentPipeline:
    """An `AvatarPipeline` around one few-step student."""

    def __init__(self, info: StudentInfo, space: LatentSpace, student: Student) -> None:
        for name, scale in (("mean", student.mean), ("std", student.std)):
            if scale.numel() != space.dim:
                raise ValueError(
                    f"{name} has shape {tuple(scale.shape)}, expected {space.dim} numbers"
                )
        self.info, self.space, self.window_spec = info, space, student.window_spec
        self._student = student

    def start(self, seed: int) -> SessionState:
        """The state before a session's first window: the face has been at rest until now."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed = {seed}, expected 0 to 2^63 - 1")
        return SessionState(seed, self.space.rest_prefix(self._student.prefix))

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
        """(B, hop, D) latents in physical units."""
        student, shape = self._student, (self.window_spec.hop, self.space.dim)
        noise = [window_noise(k.state.seed, k.state.window_index, *shape) for k in tasks]
        with torch.inference_mode():
            latents = sample(
                student.denoiser,
                student.temperature * self._shaped(noise),
                uniform_timesteps(steps),
                self._conditions(tasks),
                student.schedule,
            )
            physical = (latents * student.std + student.mean).flatten(2)
            made = np.asarray(physical.cpu().numpy(), np.float32)
        if student.finish is None:
            return made
        return student.finish(np.stack([task.state.prefix for task in tasks]), made)

    def _conditions(self, tasks: list[WindowTask]) -> Conditions:
        student = self._student
        prefix = self._shaped([k.state.prefix for k in tasks])
        guidance = [[k.guidance.audio, k.guidance.reference] for k in tasks]
        return {
            "prefix": (prefix - student.mean) / student.std,
            "audio": torch.from_numpy(np.stack([k.window.features for k in tasks])).to(prefix),
            "guidance": torch.tensor(guidance).to(prefix),
            **student.told([k.reference for k in tasks]),
        }

    def _shaped(self, latents: Sequence[Floats]) -> Tensor:
        """(T, D) each → (B, T, ...), as the network knows them and where it is."""
        mean, flat = self._student.mean, np.stack(latents)
        return torch.from_numpy(flat).to(mean).reshape(*flat.shape[:2], *mean.shape)

    def _check(self, task: WindowTask) -> None:
        low, high = STEPS_RANGE
        if not low <= task.steps <= high:
            raise ValueError(f"steps = {task.steps}, expected {low} to {high}")
        window_spec = self.window_spec
        rows = (window_spec.frames, *window_spec.frontend.row_shape)
        if task.window.features.shape != rows:
            raise ValueError(
                f"a window's features have shape {task.window.features.shape}, expected {rows}"
            )
        if not 1 <= task.window.frames <= window_spec.hop:
            raise ValueError(
                f"a window has {task.window.frames} frames, expected 1 to {window_spec.hop}"
            )
        prefix = (self._student.prefix, self.space.dim)
        if task.state.prefix.shape != prefix:
            raise ValueError(
                f"a state's prefix has shape {task.state.prefix.shape}, expected {prefix}"
            )
        if task.window.index != task.state.window_index:
            raise ValueError(
                f"window {task.window.index} came where window {task.state.window_index} is next"
            )
        task.reference.expect(self.space.name)
