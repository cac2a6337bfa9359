"""Frames and sound in, a fragmented MP4 out, fragment by fragment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from media import boxes
from media.encoders import AAC_FRAME, SAMPLE_RATE, AACEncoder, H264Encoder

AUDIO_CODEC = "mp4a.40.2"
# A fragment whose first frame is this far from the last keyframe begins with the next one. Players
# take fragments in order, so only who seeks, or begins in the middle, waits for one; a keyframe
# costs twice as much time as another frame, and eight times as many bytes.
KEY_INTERVAL = 24  # frames
_TICKS_PER_FRAME = 512
# An encoder that goes on for another one hears this much again, so that its choices agree with the
# other's. With four frames the joint is within the codec's own error, with none it can be heard.
_REHEARD = 5 * AAC_FRAME  # the first one only primes it

__all__ = ["AUDIO_CODEC", "KEY_INTERVAL", "SAMPLE_RATE", "FragmentedMP4Muxer", "MuxerState"]


@dataclass(frozen=True)
class MuxerState:
    """Where a muxer stands between two fragments; ``sound`` (N,) int16 is the last it was given.

    ``samples_in`` of sound were given, ``samples_out`` of them are in fragments.
    """

    sequence: int
    frames: int
    samples_in: int
    samples_out: int
    sound: NDArray[np.int16]


_AT_START = MuxerState(0, 0, 0, 0, np.zeros(0, np.int16))
_FULL_SCALE = 32767


class FragmentedMP4Muxer:
    """Encodes one video; each `add` gives back one whole fragment.

    ``width`` and ``height`` are even pixels; sound is mono at `SAMPLE_RATE`, whatever it came
    from, for an AAC frame then is 21 ms: the sound of a fragment may end up to two of them
    before its picture does (the encoder's own delay), and catches up with the next one.

    Both tracks start at zero in every player, with no edit list, and the length is the sound's;
    the price is that the first 21 ms fade in.

    With the ``state`` of another muxer of the same size it goes on where that one stood: with a
    keyframe, and on the same timeline.
    """

    def __init__(self, width: int, height: int, fps: int, state: MuxerState = _AT_START) -> None:
        self._video = H264Encoder(width, height, fps)
        self._sequence = state.sequence
        self._frames = state.frames
        self._since_key = KEY_INTERVAL
        self._samples_in, self._samples_out = state.samples_in, state.samples_out
        first = state.samples_in - len(state.sound)
        self._audio = AACEncoder(first, state.samples_out)
        self._recent = state.sound.astype(np.float32) / np.float32(_FULL_SCALE)
        self._encoded = first
        self._encode_whole()  # of which nothing is wanted again
        self._init = boxes.init_segment(
            boxes.VideoTrack(
                width, height, fps * _TICKS_PER_FRAME, self._video.sps, self._video.pps
            ),
            boxes.AudioTrack(SAMPLE_RATE, self._audio.bit_rate, self._audio.config),
        )

    @property
    def codecs(self) -> str:
        """The ``codecs`` parameter of the MIME type, video first."""
        return f"{boxes.codec_string(self._video.sps)},{AUDIO_CODEC}"

    def init_segment(self) -> bytes:
        """``ftyp`` and ``moov``; to be sent before the first fragment."""
        return self._init

    def add(self, frames: Iterable[NDArray[np.uint8]], pcm: NDArray[np.float32]) -> bytes:
        """Encode ``frames`` (H, W, 3) RGB with ``pcm`` (N,), their sound, into one fragment.

        A frame is done with when the next is asked for, so the caller may reuse its memory.
        """
        start, key = self._frames, self._since_key >= KEY_INTERVAL
        if key:
            self._since_key = 0
        video: list[bytes] = []
        for frame in frames:
            video.append(self._video.encode(frame, key=key and not video))
        if not video:
            raise ValueError("a fragment needs at least one frame, got 0")
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
        self._recent = self._recent[self._rehear_from - (self._samples_in - len(self._recent)) :]
        return fragment

    @property
    def _rehear_from(self) -> int:
        return max(0, self._samples_out - _REHEARD)

    def _encode_whole(self) -> list[bytes]:
        """Encode what has not been, in whole blocks."""
        rest = self._samples_in - self._encoded
        whole = rest // AAC_FRAME * AAC_FRAME
        start = len(self._recent) - rest
        self._encoded += whole
        return self._audio.encode(self._recent[start : start + whole])

    def state(self) -> MuxerState:
        """What another muxer needs to go on from here; not after `close`."""
        keep = self._rehear_from - (self._samples_in - len(self._recent))
        sound = np.clip(self._recent[keep:], -1.0, 1.0) * _FULL_SCALE
        return MuxerState(
            self._sequence,
            self._frames,
            self._samples_in,
            self._samples_out,
            np.rint(sound).astype(np.int16),
        )

    def close(self) -> bytes:
        """The rest of the sound, in a last fragment; empty when there is none."""
        packets: list[bytes] = []
        rest = self._samples_in - self._encoded
        if rest:
            packets += self._audio.encode(np.pad(self._recent[-rest:], (0, AAC_FRAME - rest)))
        packets += self._audio.finish()
        durations = []
        left = self._samples_in - self._samples_out
        for _ in packets:  # the last packet ends where the sound ends, not where its padding does
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
