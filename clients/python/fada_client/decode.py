"""The pictures in a session's fragments, by PyAV: ``pip install 'fada-client[decode]'``."""

from __future__ import annotations

import io
from typing import cast

import av
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame


class FragmentDecoder:
    """Decodes the fragments that follow ``init_segment``, in order.

    No picture waits for the next fragment. Not for two threads at once.
    """

    def __init__(self, init_segment: bytes) -> None:
        self._init = init_segment
        self._codec: VideoCodecContext | None = None

    def decode(self, fragment: bytes) -> list[VideoFrame]:
        """All pictures of ``fragment``; blocks for milliseconds. Raises ``av.FFmpegError``."""
        with av.open(io.BytesIO(self._init + fragment), "r", format="mp4") as container:
            if not container.streams.video:
                return []
            stream = container.streams.video[0]
            if self._codec is None:
                self._codec = _opened(stream.codec_context)
            return [
                picture
                for packet in container.demux(stream)
                if packet.size
                for picture in self._codec.decode(packet)
            ]


def _opened(described: VideoCodecContext) -> VideoCodecContext:
    codec = cast(VideoCodecContext, av.CodecContext.create(described.codec.name, "r"))
    codec.extradata = described.extradata
    codec.thread_count = 1  # threads by frame would hold pictures back
    codec.flags |= Flags.low_delay
    return codec
