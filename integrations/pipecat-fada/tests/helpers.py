"""Frames to send, and what came of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from conftest import KEY, PORTRAIT, Service
from numpy.typing import NDArray
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    MetricsFrame,
    OutputImageRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.frame_processor import FrameDirection
from pipecat.tests.utils import run_test
from pipecat_fada import FadaVideoService

RATE = 24_000  # of the pipeline's output
PICTURE = RATE // 25  # samples
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def service_of(service: Service, **arguments: Any) -> FadaVideoService:
    known = {"api_key": KEY, "portrait": PORTRAIT, "options": {"size": 128}}
    return FadaVideoService(url=service.url, **{**known, **arguments})


def noise(seconds: float, seed: int = 0) -> NDArray[np.int16]:
    count = round(seconds * RATE)
    return np.random.default_rng(seed).integers(-8000, 8000, count).astype("<i2")


def level(seconds: float, value: int) -> NDArray[np.int16]:
    return np.full(round(seconds * RATE), value, "<i2")


def sounds(
    pcm: NDArray[np.int16], rate: int = RATE, channels: int = 1, samples: int = 777
) -> list[Frame]:
    """In pieces that fit nothing."""
    data, size = pcm.tobytes(), samples * channels * 2
    return [
        TTSAudioRawFrame(data[at : at + size], rate, channels, "a")
        for at in range(0, len(data), size)
    ]


def reply(pcm: NDArray[np.int16], rate: int = RATE, channels: int = 1) -> list[Frame]:
    return [
        TTSStartedFrame(context_id="a"),
        *sounds(pcm, rate, channels),
        TTSStoppedFrame(context_id="a"),
    ]


@dataclass
class Seen:
    """What the service pushed; ``times`` are of ``down``, in seconds."""

    down: list[Frame]
    times: list[float]
    up: list[Frame]

    def of(self, kind: type[T]) -> list[T]:
        return [frame for frame in self.down if isinstance(frame, kind)]

    @property
    def letters(self) -> str:
        """V: picture, A: sound, S: a reply starts, E: it ends; others by their first letter."""
        names: dict[type[Frame], str] = {
            OutputImageRawFrame: "V",
            TTSAudioRawFrame: "A",
            TTSStartedFrame: "S",
            TTSStoppedFrame: "E",
            StartFrame: "",
            EndFrame: "",
            CancelFrame: "",
            MetricsFrame: "",
        }
        return "".join(names.get(type(one), type(one).__name__[0].lower()) for one in self.down)

    @property
    def sound(self) -> NDArray[np.int16]:
        return np.frombuffer(b"".join(one.audio for one in self.of(TTSAudioRawFrame)), "<i2")


class Watch(BaseObserver):
    """Records, and queues frames in the pipeline when ``until`` first holds for what was seen."""

    def __init__(
        self,
        service: FadaVideoService,
        then: Sequence[tuple[Callable[[Seen], bool], Sequence[Frame]]] = (),
    ) -> None:
        super().__init__()
        self.seen = Seen([], [], [])
        self._service, self._then = service, list(then)

    async def on_push_frame(self, data: FramePushed) -> None:
        if data.source is not self._service:
            return
        if data.direction is FrameDirection.UPSTREAM:
            self.seen.up.append(data.frame)
            return
        self.seen.down.append(data.frame)
        self.seen.times.append(time.monotonic())
        while self._then and self._then[0][0](self.seen):
            _, frames = self._then.pop(0)
            await self._service.pipeline_worker.queue_frames(frames)


async def watch(
    service: FadaVideoService,
    frames: Sequence[Frame],
    *then: tuple[Callable[[Seen], bool], Sequence[Frame]],
) -> Seen:
    """Run a pipeline of ``service`` until it ends; ``then`` holds what to send, and when.

    An `EndFrame` is sent right after ``frames``, or with the last of ``then``.
    """
    observer = Watch(service, then)
    await run_test(
        service,
        frames_to_send=frames,
        observers=[observer],
        pipeline_params=PipelineParams(audio_out_sample_rate=RATE, enable_metrics=True),
        send_end_frame=not then,
        start_timeout=20,
    )
    return observer.seen


def heard(count: int) -> Callable[[Seen], bool]:
    """``count`` slices of sound went out."""
    return lambda seen: len(seen.of(TTSAudioRawFrame)) >= count


def watched(count: int) -> Callable[[Seen], bool]:
    """``count`` pictures went out."""
    return lambda seen: len(seen.of(OutputImageRawFrame)) >= count


def ended(seen: Seen) -> bool:
    """A reply ended."""
    return bool(seen.of(TTSStoppedFrame))
