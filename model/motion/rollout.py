"""Run a student as in service: streaming windows, its own frames as the next prefix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from model.audio.stream import windows_of
from model.pipeline import FrameDecoder, StudentPipeline
from model.portrait.blendshapes import MOTION_DIM, shown_motion
from model.types import (
    NATURAL,
    Behaviour,
    Colour,
    Floats,
    Guidance,
    Picture,
    Reference,
    WindowTask,
)


class MotionOnly:
    """A latent space that is never drawn: for training and evaluation, which need no pictures."""

    name = "motion"
    dim = MOTION_DIM
    parts_background = False

    def encode_reference(self, picture: Picture) -> Reference:
        raise ValueError(f"picture has shape {picture.shape}, expected none")

    def rest_prefix(self, frames: int) -> Floats:
        return np.zeros((frames, MOTION_DIM), np.float32)

    def decoder(
        self, reference: Reference, size: int, framing: str, *, background: Colour | None = None
    ) -> FrameDecoder:
        raise ValueError(f"size = {size}, framing = {framing!r}: this space cannot be drawn")


def reference_of(features: Floats) -> Reference:
    """A reference that holds only the network's ``features`` (64,)."""
    return Reference("motion", 0, 0, (0.0, 0.0, 0.0, 0.0), 1.0, features, {})


def roll_out(
    pipeline: StudentPipeline,
    sounds: list[Floats],
    features: list[Floats],
    *,
    seeds: list[int],
    guidance: Guidance,
    steps: int,
    behaviour: Behaviour = NATURAL,
    progress: bool = True,
) -> list[Floats]:
    """The motion (T, 58) of each speech, as it is shown, with all sessions in one batch.

    ``sounds``: (N,) samples each; ``features``: (64,) of each one's reference; ``progress`` shows
    a bar.
    """
    windows = [windows_of(s) for s in sounds]
    references = [reference_of(f) for f in features]
    states = [pipeline.start(seed) for seed in seeds]
    made: list[list[Floats]] = [[] for _ in sounds]
    count = max(len(w) for w in windows)
    for index in tqdm(range(count), unit="window", leave=False, disable=not progress):
        active = [i for i, w in enumerate(windows) if index < len(w)]
        for group in _groups(active, 64):
            tasks = [
                WindowTask(windows[i][index], states[i], references[i], guidance, steps, behaviour)
                for i in group
            ]
            for i, (latents, state) in zip(group, pipeline.step(tasks), strict=True):
                made[i].append(shown_motion(latents))
                states[i] = state
    return [np.concatenate(parts) for parts in made]


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
