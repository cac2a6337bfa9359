"""Windows of speech in, latents and the next states out: the contracts, and the few-step student.

Everything that serves or evaluates a model uses `AvatarPipeline`, `LatentSpace` and
`FrameDecoder`; motion and video models both are a `StudentPipeline`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from model.audio.frontend import AudioWindowSpec
from model.diffusion.arrays import Array, like, no_gradients, to_numpy
from model.diffusion.denoiser import Conditions, Denoiser
from model.diffusion.sampler import sample, uniform_timesteps
from model.diffusion.schedule import NoiseSchedule
from model.types import Colour, Floats, ModelMetadata, Picture, Reference, SessionState, WindowTask

STEPS_RANGE = (1, 50)


class FrameDecoder(Protocol):
    """Draws one reference at one size; holds what is prepared once for that."""

    width: int
    height: int

    def decode(self, latents: Floats) -> Iterator[Picture]:
        """``latents`` (T, D) -> T frames, each valid until the next is asked for."""
        ...


class LatentSpace(Protocol):
    """The meaning of a frame's latent: portraits to references, latents to frames.

    Latents are flat, (``dim``,) per frame, wherever they are passed on or kept; only a network and
    its space know another shape.
    """

    name: str
    dim: int
    parts_background: bool  # whether `decoder` takes a background

    def encode_reference(self, picture: Picture) -> Reference:
        """Raises `model.portrait.NoFaceError` when there is no face in ``picture``."""
        ...

    def rest_prefix(self, frames: int) -> Floats:
        """(frames, D) latents of a face at rest: the prefix of a session's first window."""
        ...

    def decoder(
        self, reference: Reference, size: int, framing: str, *, background: Colour | None = None
    ) -> FrameDecoder:
        """``size``: long side in pixels, even; ``framing``: ``portrait`` or ``full``;
        ``background``: what stands behind the person, the picture's own if None."""
        ...


@runtime_checkable
class FacialSpace(Protocol):
    """A `LatentSpace` whose frames have ARKit's actions and a head pose."""

    def face_motion(self, reference: Reference, latents: Floats) -> tuple[Floats, Floats]:
        """Latents (T, D or more) -> actions (T, 52) from 0 to 1, and head pose (T, 6).

        As a capture of the reference's face would have them, in the order and units of
        `model.portrait.blendshapes`.
        """
        ...


class AvatarPipeline(Protocol):
    """One loaded model with its latent space."""

    name: str
    metadata: ModelMetadata
    space: LatentSpace
    window_spec: AudioWindowSpec

    def start(self, seed: int) -> SessionState:
        """The state before a session's first window."""
        ...

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        """Latents (window.frames, D + C) and next state of each task, in order, run as one batch.

        Batched equals alone within numeric tolerance: noise is seeded by (session seed, window
        index), never by the place in the batch. Draw with `FrameDecoder.decode`.
        """
        ...


@dataclass(frozen=True)
class Student:
    """One few-step denoiser and the meaning of its inputs and outputs.

    Args:
        prefix: clean latents before a window that condition it.
        mean, std: the latents' normalisation, in the network's shape of a latent, of the kind of
            array that it takes and on its device. Latents are passed on and kept in physical units.
        conditions: a batch's references -> the conditions that they give.
        postprocess: (B, P, D) latents before, (B, hop, D) sampled -> (B, hop, D), physical units.
        perform: a task, its latents (hop, D) -> (hop, D + C): the same latents, and what is carried
            beside them to the decoder and, from the last frame shown, to the next window. The
            network never sees it.
        temperature: scales the initial noise, one number or one per component of a latent. Few
            steps spread less from seed to seed than many; above 1 makes up for that.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    window_spec: AudioWindowSpec
    prefix: int
    mean: Array
    std: Array
    conditions: Callable[[Sequence[Reference]], Conditions]
    postprocess: Callable[[Floats, Floats], Floats] | None = None
    perform: Callable[[WindowTask, Floats], Floats] | None = None
    temperature: float | Array = 1.0


class StudentPipeline:
    """An `AvatarPipeline` around one few-step student."""

    def __init__(
        self, name: str, metadata: ModelMetadata, *, space: LatentSpace, student: Student
    ) -> None:
        for what, scale in (("mean", student.mean), ("std", student.std)):
            if math.prod(scale.shape) != space.dim:
                raise ValueError(
                    f"{what} has shape {tuple(scale.shape)}, expected {space.dim} numbers"
                )
        self.name, self.metadata = name, metadata
        self.space, self.window_spec = space, student.window_spec
        self._student = student

    def without_postprocess(self) -> StudentPipeline:
        """The same model, whose latents are left as they are sampled."""
        student = replace(self._student, postprocess=None)
        return StudentPipeline(self.name, self.metadata, space=self.space, student=student)

    def start(self, seed: int) -> SessionState:
        """The state before a session's first window: the face has been at rest until now."""
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed = {seed}, expected 0 to 2^63 - 1")
        return SessionState(seed, self.space.rest_prefix(self._student.prefix))

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        """See `AvatarPipeline.step`: one sampler call for each distinct number of steps.

        Raises ``ValueError``, before anything is computed, when a task has a wrong shape or its
        window is not the session's next one.
        """
        for task in tasks:
            self._check(task)
        results: dict[int, tuple[Floats, SessionState]] = {}
        for steps in {task.steps for task in tasks}:
            chosen = [i for i, task in enumerate(tasks) if task.steps == steps]
            batch = self._sample([tasks[i] for i in chosen], steps)
            for i, latents in zip(chosen, batch, strict=True):
                if self._student.perform is not None:
                    latents = self._student.perform(tasks[i], latents)
                frames = tasks[i].window.frames
                results[i] = latents[:frames], tasks[i].state.after(latents, frames)
        return [results[i] for i in range(len(tasks))]

    def _sample(self, tasks: list[WindowTask], steps: int) -> Floats:
        """(B, hop, D) latents in physical units."""
        student, shape = self._student, (self.window_spec.hop, self.space.dim)
        noise = [window_noise(k.state.seed, k.state.window_index, shape=shape) for k in tasks]
        with no_gradients(student.mean):
            latents = sample(
                student.denoiser,
                student.temperature * self._shaped(noise),
                uniform_timesteps(steps),
                cond=self._conditions(tasks),
                schedule=student.schedule,
            )
            physical = (latents * student.std + student.mean).reshape(len(tasks), *shape)
            sampled = np.asarray(to_numpy(physical), np.float32)
        if student.postprocess is None:
            return sampled
        return student.postprocess(np.stack([task.state.prefix for task in tasks]), sampled)

    def _conditions(self, tasks: list[WindowTask]) -> Conditions:
        student = self._student
        prefix = self._shaped([k.state.prefix for k in tasks])
        guidance = np.array([[k.guidance.audio, k.guidance.reference] for k in tasks])
        return {
            "prefix": (prefix - student.mean) / student.std,
            "audio": like(np.stack([k.window.features for k in tasks]), prefix),
            "guidance": like(guidance, prefix),
            **student.conditions([k.reference for k in tasks]),
        }

    def _shaped(self, latents: Sequence[Floats]) -> Array:
        """(T, D) each → (B, T, ...), in the network's shape, kind of array and device."""
        mean, flat = self._student.mean, np.stack(latents)
        return like(flat, mean).reshape(*flat.shape[:2], *mean.shape)

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


def window_noise(seed: int, window_index: int, *, shape: tuple[int, int]) -> Floats:
    """``shape`` (frames, dim) standard normal noise that depends only on session and window.

    A counter-based generator (Philox: Salmon et al. 2011) keyed by the two numbers: no stream to
    carry along, so a replayed window gets the same noise in any batch and any process.
    """
    bits = np.random.Philox(key=np.array([seed, window_index], np.uint64))
    return np.random.Generator(bits).standard_normal(shape, np.float32)


def refuse_teacher(metadata: Mapping[str, Any], file: str, *, command: str) -> None:
    """Raises ``ValueError`` for a teacher's ``metadata``; ``command`` distils a student from it."""
    if metadata.get("role") == "teacher":
        raise ValueError(
            f"{file} holds a teacher, which needs 25 steps of 3 evaluations: "
            f"`{command}` distils a student from it"
        )
