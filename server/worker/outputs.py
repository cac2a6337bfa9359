"""What a session makes of its latents: MP4, pixels, or the motion itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from media.encoders import Encoding
from media.fmp4 import AT_START, FragmentedMP4Muxer, MuxerState
from model.pipeline import FacialSpace
from model.portrait.blendshapes import ACTIONS, head_angles, rotation_matrices
from model.types import FPS, Floats, Picture, Reference
from server.errors import ServiceError
from server.motion import ARKIT_ACTIONS, JSON_LINES

if TYPE_CHECKING:
    from model.pipeline import AvatarPipeline, FrameDecoder

T = TypeVar("T")

_TO_ARKIT = [ACTIONS.index(name) for name in ARKIT_ACTIONS]


@dataclass(frozen=True)
class Made:
    """One fragment; ``pictures`` and their drawing where there are any."""

    data: bytes
    pictures: NDArray[np.uint8] | None = None
    draw_s: float = 0.0
    encode_s: float = 0.0


class Output(Protocol):
    """Takes a session's latents, and the sound of their frames, in order."""

    width: int
    height: int

    @property
    def codecs(self) -> str: ...

    def init_segment(self) -> bytes: ...

    def add(self, latents: Floats, pcm: Floats, *, draw_every: int = 1) -> Made:
        """Make one fragment; blocks. One of every ``draw_every`` frames is drawn, and repeated."""
        ...

    def state(self) -> MuxerState:
        """What to go on from elsewhere."""
        ...

    def close(self) -> bytes:
        """What is left after the last fragment."""
        ...


class VideoOutput:
    """Fragmented MP4."""

    def __init__(self, decoder: FrameDecoder, state: MuxerState | None, encoding: Encoding) -> None:
        self._decoder, self.width, self.height = decoder, decoder.width, decoder.height
        self._muxer = FragmentedMP4Muxer(
            self.width, self.height, FPS, state=state or AT_START, encoding=encoding
        )
        self.init_segment, self.state = self._muxer.init_segment, self._muxer.state
        self.close = self._muxer.close

    @property
    def codecs(self) -> str:
        return self._muxer.codecs

    def add(self, latents: Floats, pcm: Floats, *, draw_every: int = 1) -> Made:
        began_s = time.monotonic()
        frames = _Timed(_frames(self._decoder, latents, draw_every))
        data = self._muxer.add(frames, pcm)
        encode_s = time.monotonic() - began_s - frames.seconds
        return Made(data, draw_s=frames.seconds, encode_s=encode_s)


class _Unencoded:
    """Counts what a muxer would count; nothing is encoded."""

    codecs = ""

    def __init__(self, state: MuxerState | None) -> None:
        self._state = state or MuxerState(
            sequence=0, frames=0, samples_in=0, samples_out=0, sound=np.zeros(0, np.int16)
        )

    def state(self) -> MuxerState:
        return self._state

    def close(self) -> bytes:
        return b""

    def _count(self, frames: int, samples: int) -> None:
        now = self._state
        self._state = replace(
            now,
            sequence=now.sequence + 1,
            frames=now.frames + frames,
            samples_in=now.samples_in + samples,
            samples_out=now.samples_out + samples,
        )


class RawOutput(_Unencoded):
    """Pixels."""

    def __init__(self, decoder: FrameDecoder, state: MuxerState | None) -> None:
        super().__init__(state)
        self._decoder, self.width, self.height = decoder, decoder.width, decoder.height

    def init_segment(self) -> bytes:
        return b""

    def add(self, latents: Floats, pcm: Floats, *, draw_every: int = 1) -> Made:
        began_s = time.monotonic()
        frames = _frames(self._decoder, latents, draw_every)
        pictures = np.stack([frame.copy() for frame in frames])
        self._count(len(pictures), len(pcm))
        return Made(b"", pictures, draw_s=time.monotonic() - began_s)


class MotionOutput(_Unencoded):
    """Actions and head pose; nothing is drawn. The sound is not sent back."""

    width = height = 0

    def __init__(self, space: FacialSpace, reference: Reference, state: MuxerState | None) -> None:
        super().__init__(state)
        self._space, self._reference = space, reference

    def init_segment(self) -> bytes:
        return JSON_LINES.header(FPS).encode()

    def add(self, latents: Floats, pcm: Floats, *, draw_every: int = 1) -> Made:
        coefficients, pose = self._space.face_motion(self._reference, latents)
        angles = head_angles(rotation_matrices(pose[:, :3]))
        rows = np.concatenate([coefficients[:, _TO_ARKIT], angles, pose[:, 3:]], axis=1)
        self._count(len(rows), len(pcm))
        return Made(rows.astype("<f4").tobytes())


def _frames(decoder: FrameDecoder, latents: Floats, draw_every: int) -> Iterator[Picture]:
    """A frame for each of the ``latents``: the first of every ``draw_every`` is drawn."""
    for first, frame in enumerate(decoder.decode(latents[::draw_every])):
        yield from repeat(frame, min(draw_every, len(latents) - first * draw_every))


def facial_space(pipeline: AvatarPipeline) -> FacialSpace:
    """What `MotionOutput` needs. Raises `ServiceError` ``invalid_option`` where there is none."""
    if isinstance(pipeline.space, FacialSpace):
        return pipeline.space
    raise ServiceError(
        "invalid_option",
        f"output = 'motion', expected video: model {pipeline.name!r} has no facial actions",
    )


class _Timed(Iterator[T]):
    """Items that are made on demand; ``seconds`` is how long that took."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> T:
        began_s = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - began_s
