"""What a subscriber gets: the tracks, through H.264 and Opus encoders and decoders, with times."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from livekit import rtc
from room import Publication


@dataclass
class Viewer:
    """``pictures`` and ``sounds`` with the monotonic time at which they were decoded."""

    pictures: list[tuple[float, rtc.VideoFrame]] = field(default_factory=list)
    sounds: list[tuple[float, np.ndarray[Any, Any]]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def subscribe(self, publications: dict[str, Publication]) -> None:
        for one in publications.values():
            video = one.kind == rtc.TrackKind.KIND_VIDEO
            watched = self._watch(one.track) if video else self._listen(one.track)
            self.tasks.append(asyncio.create_task(watched))

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _watch(self, track: rtc.Track) -> None:
        encoder = decoder = None
        async for event in rtc.VideoStream(track, format=rtc.VideoBufferType.I420):
            frame = event.frame
            if encoder is None:
                encoder, decoder = _h264(frame.width, frame.height)
            shape = (frame.height * 3 // 2, frame.width)
            planes = np.frombuffer(frame.data, np.uint8).reshape(shape)
            for packet in encoder.encode(av.VideoFrame.from_ndarray(planes, "yuv420p")):
                for picture in decoder.decode(packet):
                    data = picture.to_ndarray().tobytes()
                    kind = rtc.VideoBufferType.I420
                    seen = rtc.VideoFrame(picture.width, picture.height, kind, data)
                    self.pictures.append((time.monotonic(), seen))

    async def _listen(self, track: rtc.Track) -> None:
        encoder, decoder = _opus()
        async for event in rtc.AudioStream(track, sample_rate=48_000, num_channels=1):
            samples = np.frombuffer(event.frame.data, "<i2").reshape(1, -1)
            piece = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            piece.rate = 48_000
            for packet in encoder.encode(piece):
                for heard in decoder.decode(packet):
                    pcm = np.rint(heard.to_ndarray()[0] * 32767).astype("<i2")
                    self.sounds.append((time.monotonic(), pcm))


def _h264(width: int, height: int) -> tuple[Any, Any]:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.framerate, encoder.bit_rate = 25, 2_000_000
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency"}
    return encoder, av.CodecContext.create("h264", "r")


def _opus() -> tuple[Any, Any]:
    """Pieces of 10 ms, as the streams give them."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono", "s16"
    encoder.options = {"frame_duration": "10"}
    decoder = av.CodecContext.create("opus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    return encoder, decoder
