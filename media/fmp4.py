"""Mux frames and sound into a fragmented MP4, fragment by fragment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from media import boxes, marks
from media.encoders import (
    AAC_FRAME,
    DEFAULT_ENCODING,
    SAMPLE_RATE,
    AACEncoder,
    Encoding,
    VideoEncoder,
)

AUDIO_CODEC = "mp4a.40.2"
# A fragment starts with a keyframe if its first frame is this far from the last one. Players take
# fragments in order, so only seeking and joining late need keyframes; each costs twice the time of
# another frame and eight times the bytes.
KEY_INTERVAL = 24  # frames
_TICKS_PER_FRAME = 512
# An encoder that continues another one encodes this much sound again, so that their states agree.
# With four frames the joint is within the codec's own error, with none it is audible.
_OVERLAP = 5 * AAC_FRAME  # the first frame only primes the encoder

__all__ = [
    "AT_START",
    "AUDIO_CODEC",
    "KEY_INTERVAL",
    "SAMPLE_RATE",
    "FragmentedMP4Muxer",
    "MuxerState",
]


@dataclass(frozen=True)
class MuxerState:
    """A muxer's state between two fragments.

    ``samples_in`` samples were added, ``samples_out`` of them are in fragments; ``sound`` (N,)
    int16 holds the last ones added. ``encoder`` is the one that the init segment describes; "" in
    a video that was not begun.
    """

    sequence: int
    frames: int
    samples_in: int
    samples_out: int
    sound: NDArray[np.int16]
    encoder: str = ""


AT_START = MuxerState(0, 0, 0, 0, np.zeros(0, np.int16))
_FULL_SCALE = 32767


class FragmentedMP4Muxer:
    """Encodes one video; each `add` returns one complete fragment.

    ``width`` and ``height`` are even, in pixels. Sound is mono at `SAMPLE_RATE`, so that an AAC
    frame lasts 21 ms. Because of the encoder's delay, a fragment's sound may end up to two AAC
    frames before its pictures; the next fragment catches up.

    Both tracks start at zero in every player without an edit list, and the video is as long as its
    sound; in return the first 21 ms fade in.

    With the ``state`` of another muxer of the same size it continues that one's timeline, with a
    keyframe and, whatever ``encoding`` says, under that one's init segment.

    The init segment says that a machine made the video (`media.marks`), and so does every keyframe
    of H.264; ``created`` is the day they give, by default today.
    """

    def __init__(
        self,
        width: int,
        height: int,
        fps: int,
        *,
        state: MuxerState = AT_START,
        created: date | None = None,
        encoding: Encoding = DEFAULT_ENCODING,
    ) -> None:
        continued = replace(encoding, encoder=state.encoder or encoding.encoder)
        self._video = VideoEncoder(width, height, fps, continued, continues=bool(state.encoder))
        self._sequence = state.sequence
        self._frames = state.frames
        self._since_key = KEY_INTERVAL
        self._samples_in, self._samples_out = state.samples_in, state.samples_out
        first = state.samples_in - len(state.sound)
        self._audio = AACEncoder(first, state.samples_out)
        self._recent = state.sound.astype(np.float32) / np.float32(_FULL_SCALE)
        self._encoded = first
        self._encode_whole()  # its packets are in fragments already
        day = created or marks.today()
        self._init = boxes.init_segment(
            boxes.VideoTrack(width, height, fps * _TICKS_PER_FRAME, self._video.sample_description),
            boxes.AudioTrack(SAMPLE_RATE, self._audio.bit_rate, self._audio.config),
            marks=marks.xmp_box(day),
            user_data=marks.user_data_box(day),
        )

    @property
    def codecs(self) -> str:
        """The ``codecs`` parameter of the MIME type (RFC 6381), video first."""
        return f"{self._video.sample_description.codec},{AUDIO_CODEC}"

    def init_segment(self) -> bytes:
        """``ftyp``, the XMP in a ``uuid`` box, and ``moov``, which precede the first fragment."""
        return self._init

    def add(self, frames: Iterable[NDArray[np.uint8]], pcm: NDArray[np.float32]) -> bytes:
        """Encode ``frames`` (H, W, 3) RGB with ``pcm`` (N,), their sound, into one fragment.

        A frame is encoded before the next is requested, so the caller may reuse its memory. Raises
        ``ValueError`` without frames, or for frames of another shape.
        """
        start, key = self._frames, self._since_key >= KEY_INTERVAL
        if key:
            self._since_key = 0
        video: list[bytes] = []
        for frame in frames:
            video.append(self._video.encode(frame, key=key and not video))
        if not video:
            raise ValueError("a fragment needs at least one frame, got 0")
        if key and self._video.format == "h264":
            video[0] = marks.keyframe_unit() + video[0]
        self._frames += len(video)
        self._since_key += len(video)
        runs = [
            boxes.Run(
                boxes.VIDEO_TRACK,
                start * _TICKS_PER_FRAME,
                video,
                [_TICKS_PER_FRAME] * len(video),
                key,
            )
        ]
        self._recent = np.concatenate([self._recent, pcm])
        self._samples_in += len(pcm)
        packets = self._encode_whole()
        fragment = self._fragment(runs, packets, [AAC_FRAME] * len(packets))
        self._recent = self._recent[self._overlap_start - (self._samples_in - len(self._recent)) :]
        return fragment

    @property
    def _overlap_start(self) -> int:
        return max(0, self._samples_out - _OVERLAP)

    def _encode_whole(self) -> list[bytes]:
        """Encode the pending sound, in whole blocks."""
        rest = self._samples_in - self._encoded
        whole = rest // AAC_FRAME * AAC_FRAME
        start = len(self._recent) - rest
        self._encoded += whole
        return self._audio.encode(self._recent[start : start + whole])

    def state(self) -> MuxerState:
        """The state from which another muxer can continue; not valid after `close`."""
        keep = self._overlap_start - (self._samples_in - len(self._recent))
        sound = np.clip(self._recent[keep:], -1.0, 1.0) * _FULL_SCALE
        return MuxerState(
            self._sequence,
            self._frames,
            self._samples_in,
            self._samples_out,
            np.rint(sound).astype(np.int16),
            self._video.encoder,
        )

    def close(self) -> bytes:
        """The rest of the sound in a last fragment; empty if there is none."""
        packets: list[bytes] = []
        rest = self._samples_in - self._encoded
        if rest:
            packets += self._audio.encode(np.pad(self._recent[-rest:], (0, AAC_FRAME - rest)))
        packets += self._audio.finish()
        durations = []
        left = self._samples_in - self._samples_out
        for _ in packets:  # the last packet ends with the sound, not with its padding
            durations.append(max(0, min(AAC_FRAME, left)))
            left -= AAC_FRAME
        if not packets:
            return b""
        return self._fragment([], packets, durations)

    def _fragment(self, runs: list[boxes.Run], packets: list[bytes], durations: list[int]) -> bytes:
        if packets:
            runs.append(boxes.Run(boxes.AUDIO_TRACK, self._samples_out, packets, durations, True))
            self._samples_out += sum(durations)
        self._sequence += 1
        return boxes.fragment(self._sequence, runs)
