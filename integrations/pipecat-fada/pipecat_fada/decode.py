"""The pictures in a live session's fragments."""

from __future__ import annotations

import io
from typing import cast

import av
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext


class FragmentDecoder:
    """Decodes a session's fragments, in order; each fragment's pictures come out at once."""

    def __init__(self, init_segment: bytes) -> None:
        self._init = init_segment
        self._codec: VideoCodecContext | None = None

    def decode(self, fragment: bytes) -> list[bytes]:
        """Each picture as (H, W, 3) RGB. Blocks for milliseconds; not for two threads at once."""
        with av.open(io.BytesIO(self._init + fragment), "r", format="mp4") as container:
            if not container.streams.video:
                return []
            stream = container.streams.video[0]
            if self._codec is None:
                self._codec = _decoder(stream.codec_context)
            return [
                picture.to_ndarray(format="rgb24").tobytes()
                for packet in container.demux(stream)
                if packet.size
                for picture in self._codec.decode(packet)
            ]


def _decoder(described: VideoCodecContext) -> VideoCodecContext:
    codec = cast(VideoCodecContext, av.CodecContext.create(described.codec.name, "r"))
    codec.extradata = described.extradata
    codec.thread_count = 1  # threads by frame would hold pictures back
    codec.flags |= Flags.low_delay
    return codec
