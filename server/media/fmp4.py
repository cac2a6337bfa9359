"""Frames and sound in, a fragmented MP4 out, fragment by fragment.

Knows: which sample belongs to which fragment, and where a keyframe is due. The boxes are laid out
in `server.media.boxes`, not by libavformat: its muxer holds a fragment back until the next one's
first frame, and has no init segment before the first data. Does not know codecs
(`server.media.encoders`), sessions, windows or sockets.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from server.media import boxes
from server.media.encoders import AAC_FRAME, SAMPLE_RATE, PictureEncoder, SoundEncoder

AUDIO_CODEC = "mp4a.40.2"
# A fragment whose first frame is this far from the last keyframe begins with the next one. Players
# take fragments in order, so only who seeks, or begins in the middle, waits for one; a keyframe
# costs twice as much time as another frame, and eight times as many bytes.
KEY_INTERVAL = 24  # frames
_TICKS_PER_FRAME = 512

__all__ = ["AUDIO_CODEC", "KEY_INTERVAL", "SAMPLE_RATE", "FragmentedMP4Muxer"]


class FragmentedMP4Muxer:
    """Encodes one video; each `add` gives back one whole fragment.

    ``width`` and ``height`` are even pixels; sound is mono at `SAMPLE_RATE`, whatever it came
    from, for an AAC frame then is 21 ms: the sound of a fragment may end up to two of them
    before its picture does (the encoder's own delay), and catches up with the next one.

    Both tracks start at zero in every player, with no edit list, and the length is the sound's;
    the price is that the first 21 ms fade in.
    """

    def __init__(self, width: int, height: int, fps: int) -> None:
        self._video = PictureEncoder(width, height, fps)
        self._audio = SoundEncoder()
        self._sequence = 0
        self._frames = 0
        self._since_key = KEY_INTERVAL
        self._pcm: NDArray[np.float32] = np.zeros(0, np.float32)
        self._samples_in = 0
        self._samples_out = 0
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
        video = []
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
        self._pcm = np.concatenate([self._pcm, pcm])
        self._samples_in += len(pcm)
        whole = len(self._pcm) // AAC_FRAME * AAC_FRAME
        packets = self._audio.encode(self._pcm[:whole])
        self._pcm = self._pcm[whole:]
        return self._fragment(runs, packets, [AAC_FRAME] * len(packets))

    def close(self) -> bytes:
        """The rest of the sound, in a last fragment; empty when there is none."""
        packets: list[bytes] = []
        if len(self._pcm):
            packets += self._audio.encode(np.pad(self._pcm, (0, AAC_FRAME - len(self._pcm))))
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
