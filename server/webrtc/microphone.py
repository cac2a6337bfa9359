"""A client's microphone: packets as they come in, PCM for a session out."""

from __future__ import annotations

from collections import deque

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtp import RtpPacket
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from server.webrtc import wire

_QUIET = 100  # of 32768; about 50 dB below full scale
_LONGEST_PAUSE_S = 1.0
_KEPT_BLOCKS = 5  # of 20 ms
_LONGEST_GAP_S = 1.0  # of lost sound that is filled with silence
_PATIENCE = 3  # packets that wait for one that is missing
_MOST_LATE = 50  # packets in a row from the past: the sender has begun to count anew


class PacketOrder:
    """Puts packets in order, and holds none back but behind one that is missing."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._waiting: dict[int, RtpPacket] = {}
        self._late = 0

    def add(self, packet: RtpPacket) -> list[RtpPacket]:
        """Take a packet; returns all that are due now, in order."""
        number = packet.sequence_number
        if self._next is None or self._late >= _MOST_LATE:
            self._next, self._late = number, 0
            self._waiting.clear()
        if self._ahead(number) < 1 << 15:
            self._waiting[number], self._late = packet, 0
        else:
            self._late += 1
        if len(self._waiting) >= _PATIENCE:  # what is missing is lost
            self._next = min(self._waiting, key=self._ahead)
        due = []
        while self._next in self._waiting:
            due.append(self._waiting.pop(self._next))
            self._next = self._next + 1 & 0xFFFF
        return due

    def _ahead(self, number: int) -> int:
        return number - (self._next or 0) & 0xFFFF


class NoJitterBuffer:
    """In place of aiortc's, which holds four packets back (80 ms), and sixteen after a loss."""

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame]:
        """Take a packet; whether a keyframe is needed (never), and the packet as a frame."""
        # aiortc's receiver leaves the codec's payload there.
        data: bytes = packet._data  # type: ignore[attr-defined]
        return False, JitterFrame(data=data, timestamp=packet.timestamp)


def receive_in_order(receiver: RTCRtpReceiver) -> None:
    """Have ``receiver`` decode each packet as it comes, but in order; aiortc has no option."""
    order, handle = PacketOrder(), receiver._handle_rtp_packet

    async def in_order(packet: RtpPacket, arrival_time_ms: int) -> None:
        for due in order.add(packet):
            await handle(due, arrival_time_ms)

    setattr(receiver, "_handle_rtp_packet", in_order)  # noqa: B010
    setattr(receiver, "_RTCRtpReceiver__jitter_buffer", NoJitterBuffer())  # noqa: B010


class Microphone:
    """Frames of a client's track as PCM without gaps, s16le mono at `wire.SAMPLE_RATE`."""

    def __init__(self) -> None:
        self._mono = AudioResampler("s16", "mono", wire.SAMPLE_RATE)
        self._expected: int | None = None

    def pcm(self, frame: AudioFrame) -> bytes:
        """The sound of a frame, after silence for what was lost before it."""
        lost = 0
        if frame.pts is not None:
            if self._expected is not None:
                lost = frame.pts - self._expected
                lost = lost if 0 < lost <= _LONGEST_GAP_S * frame.sample_rate else 0
            self._expected = frame.pts + frame.samples
        silence = bytes(2 * (lost * wire.SAMPLE_RATE // frame.sample_rate))
        frame.pts = None
        blocks = self._mono.resample(frame)
        return silence + b"".join(bytes(one.planes[0])[: 2 * one.samples] for one in blocks)


class SilenceGate:
    """Passes PCM on but for long silence, in which the avatar rests or shows its `state`.

    A track sends silence as well, and a session would speak it.
    """

    def __init__(self) -> None:
        self._quiet_s = _LONGEST_PAUSE_S
        self._kept: deque[bytes] = deque(maxlen=_KEPT_BLOCKS)  # speech begins softly

    def passed(self, pcm: bytes) -> bytes:
        """What to send now that ``pcm`` has come: nothing, it, or some blocks before it too."""
        samples = memoryview(pcm).cast("h")
        if pcm and max(max(samples), -min(samples)) >= _QUIET:
            kept, self._quiet_s = b"".join(self._kept), 0.0
            self._kept.clear()
            return kept + pcm
        self._quiet_s += len(samples) / wire.SAMPLE_RATE
        if self._quiet_s < _LONGEST_PAUSE_S:
            return pcm
        self._kept.append(pcm)
        return b""
