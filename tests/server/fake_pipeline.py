"""A pipeline that draws flat colours, from which tests read what the service did.

Each frame is one flat colour: red tells the window, green the session's seed, blue the frame. A
picture whose top left pixel is pure red has no face, one of pure green a covered mouth, and one of
pure blue poisons its third window. Named by
``FADA_PIPELINE=tests.server.fake_pipeline:load_pipeline``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from model.audio.log_mel import LOG_MEL
from model.portrait.blendshapes import ACTIONS
from model.portrait.face_tracker import NoFaceError
from model.portrait.occlusion import OccludedError
from model.types import (
    Behaviour,
    Floats,
    Guidance,
    ModelMetadata,
    Picture,
    Reference,
    SessionState,
    WindowTask,
)

RED_STEP, GREEN_STEP, BLUE_STEP = 16, 16, 24


class FakeDecoder:
    def __init__(self, width: int, height: int, *, grain: bool = False) -> None:
        self.width, self.height = width, height
        self._buffer = np.zeros((height, width, 3), np.uint8)
        self._grain = np.random.default_rng(0) if grain else None

    def decode(self, latents: Floats) -> Iterator[Picture]:
        for row in latents:
            self._buffer[:] = row.astype(np.uint8)
            if self._grain is not None:  # takes a megabit a second at 128 pixels
                self._buffer += self._grain.integers(0, 40, self._buffer.shape, np.uint8)
            yield self._buffer


class FakeSpace:
    name = "fake"
    dim = 3
    parts_background = False

    def encode_reference(self, picture: Picture) -> Reference:
        if tuple(picture[0, 0]) == (255, 0, 0):
            raise NoFaceError("there is no face in the picture")
        if tuple(picture[0, 0]) == (0, 255, 0):
            raise OccludedError("the mouth is covered")
        height, width = picture.shape[:2]
        return Reference(
            latent_space=self.name,
            width=width,
            height=height,
            face_box=(0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height),
            face_confidence=0.9,
            features=np.zeros(4, np.float32),
            arrays={
                "poison": np.array(tuple(picture[0, 0]) == (0, 0, 255)),
                "grain": np.array(tuple(picture[0, 0]) == (255, 0, 255)),
            },
        )

    def rest_prefix(self, frames: int) -> Floats:
        return np.zeros((frames, self.dim), np.float32)

    def face_motion(self, reference: Reference, latents: Floats) -> tuple[Floats, Floats]:
        """The jaw opens by the frame's blue, the head turns by its red; `browInnerUp` is seed."""
        actions, pose = np.zeros((len(latents), 52), np.float32), np.zeros((len(latents), 6))
        actions[:, ACTIONS.index("jawOpen")] = latents[:, 2] / 255
        actions[:, ACTIONS.index("browInnerUp")] = latents[:, 1] / 255
        pose[:, 1] = latents[:, 0] / 255
        return actions, pose.astype(np.float32)

    def decoder(
        self, reference: Reference, size: int, framing: str, *, background: None = None
    ) -> FakeDecoder:
        if framing == "portrait":
            return FakeDecoder(size, size, grain=bool(reference.arrays["grain"]))
        scale = size / max(reference.width, reference.height)
        return FakeDecoder(
            round(reference.width * scale / 2) * 2, round(reference.height * scale / 2) * 2
        )


class FakePipeline:
    def __init__(self, name: str) -> None:
        self.name = name
        self.metadata = ModelMetadata(
            steps=6,
            guidance=Guidance(3.0, 2.0),
            limits=((0.0, 10.0), (0.0, 10.0)),
            licence="Apache-2.0",
        )
        self.space, self.window_spec = FakeSpace(), LOG_MEL
        self.batches: list[int] = []
        self.behaviours: list[Behaviour] = []

    def start(self, seed: int) -> SessionState:
        return SessionState(seed, self.space.rest_prefix(1))

    def step(self, tasks: Sequence[WindowTask]) -> list[tuple[Floats, SessionState]]:
        self.batches.append(len(tasks))
        self.behaviours += [task.behaviour for task in tasks]
        return [self._one(task) for task in tasks]

    def _one(self, task: WindowTask) -> tuple[Floats, SessionState]:
        if task.reference.arrays["poison"] and task.window.index == 2:
            raise ArithmeticError("this window is poisoned")
        frames = task.window.frames
        latents = np.zeros((frames, 3), np.float32)
        latents[:, 0] = task.state.window_index % 16 * RED_STEP
        latents[:, 1] = task.state.seed % 16 * GREEN_STEP
        latents[:, 2] = np.arange(frames) % 8 * BLUE_STEP
        return latents, task.state.after(latents, frames)


def load_pipeline(name: str) -> FakePipeline:
    return FakePipeline(name)
