"""Record an interruption as a viewer gets it, and measure it.

    python integrations/pipecat-fada/examples/record.py OUT.mp4 --url http://127.0.0.1:8000

A bot speaks, is interrupted after some seconds, and speaks again a second later. The pipeline is
Pipecat's, down to its output transport, which plays in real time; in place of a network there is a
file. Prints the avatar's TTFB, and how long after the interruption old sound was played and an old
picture appeared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from pipecat.frames.frames import (
    EndFrame,
    InterruptionFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
from pipecat_fada import FadaVideoService

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
RATE = 24_000
FPS = 30  # of the transport


@dataclass
class Take:
    """What was shown and played; times are seconds of ``time.monotonic``."""

    pictures: list[tuple[float, bytes]] = field(default_factory=list)
    sounds: list[tuple[float, bytes]] = field(default_factory=list)


class FileTransport(BaseOutputTransport):
    """Plays in real time into a `Take`."""

    def __init__(self, params: TransportParams, take: Take) -> None:
        super().__init__(params)
        self._take, self._played_s = take, 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_video_frame(self, frame: OutputImageRawFrame) -> bool:
        self._take.pictures.append((time.monotonic(), frame.image))
        return True

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        begin_s = max(time.monotonic(), self._played_s)
        self._take.sounds.append((begin_s, frame.audio))
        self._played_s = begin_s + frame.num_frames / frame.sample_rate
        await asyncio.sleep(self._played_s - time.monotonic())
        return True


class Times(BaseObserver):
    """When the avatar passed what on."""

    def __init__(self, avatar: FadaVideoService) -> None:
        super().__init__()
        self.ttfb_s: list[float] = []
        self.interrupted_s = 0.0
        self.pictures: list[bytes] = []
        self.old = 0  # of these were passed on before the interruption
        self.stops = 0
        self.spoke, self.stopped = asyncio.Event(), asyncio.Event()
        self._avatar = avatar

    async def on_push_frame(self, data: FramePushed) -> None:
        frame = data.frame
        if data.source is not self._avatar or data.direction is not FrameDirection.DOWNSTREAM:
            return
        if isinstance(frame, MetricsFrame):
            self.ttfb_s += [one.value for one in frame.data if one.value]
        elif isinstance(frame, OutputImageRawFrame):
            self.pictures.append(frame.image)
        elif isinstance(frame, TTSAudioRawFrame):
            self.spoke.set()
        elif isinstance(frame, InterruptionFrame):
            self.interrupted_s, self.old = time.monotonic(), len(self.pictures)
        elif isinstance(frame, TTSStoppedFrame):
            self.stops += 1
            self.stopped.set()


async def record(url: str, portrait: Path, speech: Path, *, interrupt_s: float, size: int) -> Take:
    avatar = FadaVideoService(
        url=url,
        api_key=os.environ.get("FADA_API_KEY"),
        portrait=portrait,
        options={"size": size, "seed": 1},
    )
    take, times = Take(), Times(avatar)
    params = TransportParams(
        audio_out_enabled=True,
        audio_out_end_silence_secs=0,
        video_out_enabled=True,
        video_out_width=size,
        video_out_height=size,
        video_out_framerate=FPS,
    )
    worker = PipelineWorker(
        Pipeline([avatar, FileTransport(params, take)]),
        params=PipelineParams(enable_metrics=True, audio_out_sample_rate=RATE),
        observers=[times],
        enable_rtvi=False,
    )

    async def say() -> None:
        samples, rate = soundfile.read(speech, dtype="int16")
        size = rate // 50
        await worker.queue_frame(TTSStartedFrame())
        for at in range(0, len(samples), size):
            piece = samples[at : at + size].tobytes()
            await worker.queue_frame(TTSAudioRawFrame(piece, rate, 1))
        await worker.queue_frame(TTSStoppedFrame())

    async def converse() -> None:
        await asyncio.sleep(1.5)
        await say()
        await times.spoke.wait()
        await asyncio.sleep(interrupt_s)
        await worker.queue_frames([UserStartedSpeakingFrame(), InterruptionFrame()])
        await asyncio.sleep(1.0)
        await worker.queue_frame(UserStoppedSpeakingFrame())
        await say()
        await times.stopped.wait()
        await asyncio.sleep(1.0)
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), converse())
    report(take, times)
    return take


def report(take: Take, times: Times) -> None:
    cut_s = times.interrupted_s
    new_s = next(at for at, _ in take.sounds if at > cut_s + 0.5)
    old_sound_s = max(
        at + len(pcm) / 2 / RATE for at, pcm in take.sounds if at < new_s and any(pcm)
    )
    first_shown = {id(rgb): at for at, rgb in reversed(take.pictures)}
    old = {id(rgb) for rgb in times.pictures[: times.old]}
    old_picture_s = max(at for one, at in first_shown.items() if one in old)
    first_new_s = min(at for one, at in first_shown.items() if one not in old)
    gaps = np.diff([at for at, _ in take.sounds if at >= new_s]) - 0.04
    print("avatar's TTFB:", ", ".join(f"{one * 1000:.0f} ms" for one in times.ttfb_s))
    print(f"old sound ends {(old_sound_s - cut_s) * 1000:.0f} ms after the interruption")
    print(f"last old picture appears {(old_picture_s - cut_s) * 1000:.0f} ms after it")
    print(f"first new picture appears {(first_new_s - cut_s) * 1000:.0f} ms after it")
    print(f"longest gap in the new reply's sound: {gaps.max() * 1000:.0f} ms")
    print(
        f"TTSStoppedFrame: {times.stops}; "
        f"shown {len(first_shown)} of {len(times.pictures)} pictures"
    )


def write(take: Take, path: Path, size: int) -> None:
    """The take as a viewer saw it, each picture from when it was shown."""
    begin_s = take.pictures[0][0]
    count = int((take.pictures[-1][0] - begin_s) * FPS)
    sound = np.zeros(int((count / FPS + 1) * RATE), np.int16)
    for at, pcm in take.sounds:
        start = int((at - begin_s) * RATE)
        piece = np.frombuffer(pcm, "<i2")[: max(0, len(sound) - start)]
        sound[start : start + len(piece)] = piece
    with av.open(path, "w") as file:
        video = file.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "fast"})
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        audio = file.add_stream("aac", rate=RATE, layout="mono")
        shown = 0
        for n in range(count):
            while shown + 1 < len(take.pictures) and (
                take.pictures[shown + 1][0] <= begin_s + n / FPS
            ):
                shown += 1
            rgb = np.frombuffer(take.pictures[shown][1], np.uint8).reshape(size, size, 3)
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(sound[None, : count * RATE // FPS], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        file.mux(audio.encode(frame))
        file.mux(audio.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--portrait", type=Path, default=EXAMPLES / "presenter.jpg")
    parser.add_argument("--speech", type=Path, default=EXAMPLES / "speech.wav")
    parser.add_argument("--interrupt-s", type=float, default=2.5)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args()
    take = asyncio.run(
        record(
            given.url,
            given.portrait,
            given.speech,
            interrupt_s=given.interrupt_s,
            size=given.size,
        )
    )
    write(take, given.out, given.size)


if __name__ == "__main__":
    main()
