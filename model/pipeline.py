"""What an avatar pipeline is: windows of speech in, frames and the next states out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.audio.frontend import AudioWindowSpec
from model.types import Floats, Guidance, Reference, SessionState, Window

Frame = NDArray[np.uint8]  # (H, W, 3) RGB


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
    """What a frame's latent means: how a portrait becomes a reference and latents frames.

    Latents are flat, (``dim``,) a frame, wherever they are handed on or kept; only a network and
    the space itself know them by another shape.
    """

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
    window_spec: AudioWindowSpec

    def start(self, seed: int) -> SessionState:
        """The state before a session's first window."""
        ...

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        """Latents (window.frames, D) and next state of each task, in order, run as one batch.

        Batched equals alone within numeric tolerance: noise is seeded by (session seed, window
        index), never by the place in the batch. Draw with `FrameDecoder.decode`.
        """
        ...
