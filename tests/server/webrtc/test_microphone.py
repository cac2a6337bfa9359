from __future__ import annotations

import fractions

import numpy as np
from aiortc.rtp import RtpPacket
from av.audio.frame import AudioFrame

from server.webrtc.microphone import Microphone, PacketOrder, SilenceGate

BLOCK = 960
LOUD = np.full(BLOCK, 5000, np.int16).tobytes()
SOFT = np.full(BLOCK, 20, np.int16).tobytes()


def frame(at: int, layout: str = "stereo") -> AudioFrame:
    """20 ms at 48 kHz, as an Opus decoder gives it."""
    channels = 2 if layout == "stereo" else 1
    made = AudioFrame.from_ndarray(np.full((1, BLOCK * channels), 5000, np.int16), "s16", layout)
    made.sample_rate, made.pts, made.time_base = 48_000, at, fractions.Fraction(1, 48_000)
    return made


def test_lost_sound_is_silence_of_the_same_length() -> None:
    microphone = Microphone()
    heard = b"".join(microphone.pcm(frame(at * BLOCK)) for at in (0, 1, 4, 5))
    samples = np.frombuffer(heard, np.int16)
    assert len(samples) == 6 * BLOCK
    quiet = samples == 0
    assert quiet[2 * BLOCK : 4 * BLOCK].all() and not quiet[: 2 * BLOCK].any()


def test_a_clock_that_jumps_adds_nothing() -> None:
    microphone = Microphone()
    heard = b"".join(microphone.pcm(frame(at)) for at in (0, 500_000, 3 * BLOCK))
    assert len(heard) == 2 * 3 * BLOCK


def test_long_silence_is_not_spoken_and_speech_is_not_cut() -> None:
    gate = SilenceGate()
    assert gate.passed(SOFT) == b""  # before anybody has spoken
    assert gate.passed(LOUD) == SOFT + LOUD
    pause = [gate.passed(SOFT) for _ in range(60)]
    assert pause[:45] == [SOFT] * 45  # a pause within speech
    assert pause[-5:] == [b""] * 5
    assert gate.passed(LOUD) == 5 * SOFT + LOUD


def order(numbers: list[int]) -> list[list[int]]:
    """The numbers that come out as each of ``numbers`` goes in."""
    buffer = PacketOrder()
    packets = [RtpPacket(sequence_number=number & 0xFFFF) for number in numbers]
    return [[due.sequence_number for due in buffer.add(packet)] for packet in packets]


def test_packets_pass_at_once_and_in_order() -> None:
    assert order([65534, 65535, 65536, 65537]) == [[65534], [65535], [0], [1]]
    assert order([1, 3, 2, 4]) == [[1], [], [2, 3], [4]]


def test_after_a_lost_packet_nothing_stays_late() -> None:
    assert order([1, 3, 4, 5, 6, 2]) == [[1], [], [], [3, 4, 5], [6], []]  # 2 comes too late
    assert order([1, 3, 5, 6, 7, 8]) == [[1], [], [], [3], [5, 6, 7], [8]]


def test_a_sender_may_count_anew() -> None:
    assert order([9000, *range(1, 60)])[-1] == [59]
